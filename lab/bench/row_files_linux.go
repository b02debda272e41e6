package bench

import (
	"context"
	"os"
)

// hot is the row "hot".
func (r *runner) hot(context.Context) error {
	if r.Benchmarks == "" {
		r.Missing = append(r.Missing, "hot: no output of go test -bench was given")
		return nil
	}
	all, err := r.benchmarks()
	if err == nil {
		r.hotFunctions(all)
	}
	return err
}

func (r *runner) benchmarks() ([]benchmark, error) {
	f, err := os.Open(r.Benchmarks)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseBenchmarks(f)
}

// sideBySide is the row "side-by-side".
func (r *runner) sideBySide(context.Context) error {
	if r.SideBySide == "" {
		r.Missing = append(r.Missing, "side-by-side: no results of a harness were given")
		return nil
	}
	f, err := os.Open(r.SideBySide)
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := parseSideBySide(f)
	if err != nil {
		return err
	}
	if len(s[ours]) == 0 || len(s.peers()) == 0 {
		r.Missing = append(r.Missing, "side-by-side: the results are not of ours beside others")
	}
	r.compare(s)
	return nil
}

package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestMain is also the main of the apps that the rows start: see AppVariable.
func TestMain(m *testing.M) {
	if task := os.Getenv(AppVariable); task != "" {
		if err := App(context.Background(), task, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestRows runs every row, quickly: that it works, that no flow failed, and
// that its figures can be. How fast anything was is not looked at.
func TestRows(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: the rows make network namespaces; run them as root")
	}
	bin := filepath.Join(t.TempDir(), "atlanticd")
	build := exec.Command("go", "build", "-o", bin, "../../app/atlanticd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	want := map[string][]string{ // figures that must be there, and above 0
		"first-byte": {"first-byte/socks5/early/p50", "first-byte/socks5/lost/p50", "first-byte/http2/off/p50"},
		"reuse":      {"reuse/socks5/cold/flows"},
		"added":      {},
		"memory":     {"memory/0"},
		"peers-real": {},
		"hls":        {"hls/480p/socks5/start"},
		"mixed":      {},
		"growth":     {"growth/10/rss", "growth/40/first-byte-p50"},
		"soak":       {"soak/flows"},
		"hot":        {}, "side-by-side": {},
	}
	type outcome struct {
		report *Report
		steps  strings.Builder
		err    error
	}
	outcomes := map[string]*outcome{}
	var wg sync.WaitGroup
	for _, r := range Rows() {
		o := &outcome{}
		outcomes[r[0]] = o
		// All at once, more than -parallel would: they wait most of the time.
		wg.Go(func() {
			o.report, o.err = Run(t.Context(), Options{Atlanticd: bin, Rows: []string{r[0]}, Quick: true, Progress: &o.steps})
		})
	}
	wg.Wait()
	for name, o := range outcomes {
		figures, ok := want[name]
		if !ok {
			t.Errorf("nothing is expected of row %s", name)
		}
		t.Run(name, func(t *testing.T) {
			if o.err != nil {
				t.Fatalf("%v\n%s", o.err, &o.steps)
			}
			report := o.report
			for _, name := range figures {
				if f, ok := report.Get(name); !ok || f.Value <= 0 {
					t.Errorf("%s: %v", name, f.Value)
				}
			}
			for _, f := range report.Figures {
				failed := strings.HasSuffix(f.Name, "/errors") || strings.HasSuffix(f.Name, "/lost")
				if failed && f.Value != 0 || f.Name != strings.ToLower(f.Name) {
					t.Errorf("%s: %v", f.Name, f.Value)
				}
				// Nothing is faster than its path.
				if f.Unit == "RTT" && f.Value < 0.99 {
					t.Errorf("%s: %v round trips", f.Name, f.Value)
				}
			}
			for _, m := range report.Missing {
				t.Logf("SKIPPED: %s", m)
			}
		})
	}
}

// TestUnknownRow: a typing error is one.
func TestUnknownRow(t *testing.T) {
	if _, err := Run(t.Context(), Options{Rows: []string{"no-such-row"}}); err == nil {
		t.Error("no error")
	}
}

// TestAppsTakeTurns: of two tasks, one works in the even turns and one in the odd.
func TestAppsTakeTurns(t *testing.T) {
	const turn = 20 * time.Millisecond
	for _, odd := range []bool{false, true} {
		a := &app{Task: Task{Turn: turn, Odd: odd}}
		for range 3 {
			before := time.Now()
			if !a.wait(t.Context(), before) {
				t.Fatal("did not wait")
			}
			// It may have been held up since, but it had a turn of its own.
			if n, m := before.UnixNano()/int64(turn), time.Now().UnixNano()/int64(turn); n == m && (n%2 == 1) != odd {
				t.Errorf("odd %v: works in turn %d", odd, n)
			}
			time.Sleep(turn / 2)
		}
	}
}

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Kind of a Task.
type Kind string

const (
	// Fresh asks for Bytes on a new connection each time, Count times or for
	// Time, by Workers at once, at Rate a second in all if it is not 0. It
	// measures from connect(2) to the first byte of the answer.
	Fresh Kind = "fresh"
	// Probe is Fresh, but what is for the target leaves with the request to the
	// proxy, in one write; an answer that is not the target's is an error.
	Probe Kind = "probe"
	// Load is Rate requests a second for Time, whether or not earlier ones have
	// been answered: mixed sizes, most on used connections, some on fresh ones.
	// It measures from the request (or connect) to the answer's last byte.
	Load Kind = "load"
	// Hold opens Count connections, asks for one byte on each, prints a Result,
	// and holds them until its input ends; then it asks on each again and prints
	// another Result.
	Hold Kind = "hold"
	// Bulk downloads (or, with Up, uploads) on Workers connections for Time.
	Bulk Kind = "bulk"
	// Call sends a datagram of Bytes Rate times a second to an echo server and
	// measures round trips.
	Call Kind = "call"
	// Browse loads pages for Time, one after the other with pauses between them:
	// 6 to 30 connections at once to several hosts, one to three requests on
	// each. It measures as Fresh does.
	Browse Kind = "browse"
	// Play is a video player: Count segments of SegmentSeconds from each of
	// Targets (URLs with one %d), one after the other.
	Play Kind = "play"
)

// Task is one thing that an app does; it runs in a process of its own, in the
// namespace that the process was started in.
type Task struct {
	Kind    Kind
	Via     string // proxy URL that the app itself speaks to; "" for none
	CAFile  string // roots for TLS; "" for the system's
	Targets []string
	Count   int
	Workers int // 0 means 1
	Rate    float64
	Time    time.Duration
	Gap     time.Duration // Fresh: pause of each worker after a request
	Bytes   int64
	Up      bool
	// Leave, of Fresh: the app closes the connection as soon as it has its
	// answer; else the target does, and the app waits for that.
	Leave bool
	Seed  uint64
	// SegmentSeconds and Ahead: Play; a player that has Ahead in its buffer
	// waits before it fetches the next segment.
	SegmentSeconds int
	Ahead          time.Duration
	// Turn, if not 0: work only in every second turn of that length since the
	// Unix epoch, the even ones or (Odd) the odd ones. So two tasks alternate.
	Turn time.Duration
	Odd  bool
	// Samples keeps each measured value, not only the percentiles.
	Samples bool
}

// Result of a Task. Times are milliseconds.
type Result struct {
	Count   int // that succeeded
	Errors  int
	Error   string // the first
	Bytes   int64
	Seconds float64 // the task took
	P50     float64
	P95     float64
	P99     float64
	Max     float64
	Samples []float64 `json:",omitempty"` // in the order they ended
	// Play
	Stalls  int
	Stalled float64 // ms in all
	Start   float64 // ms until the first picture
}

// Rate of successes a second.
func (r Result) Rate() float64 { return float64(r.Count) / max(r.Seconds, 1e-9) }

// Gbps is the payload's rate in Gbit/s.
func (r Result) Gbps() float64 { return float64(r.Bytes) * 8 / max(r.Seconds, 1e-9) / 1e9 }

// tally gathers a Result from several goroutines.
type tally struct {
	mu      sync.Mutex
	all     []time.Duration
	bytes   int64
	errors  int
	first   error
	started time.Time
}

func newTally() *tally { return &tally{started: time.Now()} }

// note records one attempt: how long it took, what it carried, or its error.
func (t *tally) note(d time.Duration, n int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.errors++
		if t.first == nil {
			t.first = err
		}
		return
	}
	t.all = append(t.all, d)
	t.bytes += n
}

// result sums up; the tally goes on.
func (t *tally) result(samples bool) Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Result{Count: len(t.all), Errors: t.errors, Bytes: t.bytes, Seconds: time.Since(t.started).Seconds()}
	if t.first != nil {
		r.Error = t.first.Error()
	}
	if samples {
		for _, d := range t.all {
			r.Samples = append(r.Samples, milliseconds(d))
		}
	}
	sorted := slices.Sorted(slices.Values(t.all))
	r.P50, r.P95 = milliseconds(quantile(sorted, .5)), milliseconds(quantile(sorted, .95))
	r.P99, r.Max = milliseconds(quantile(sorted, .99)), milliseconds(quantile(sorted, 1))
	return r
}

// App carries out the task that it is given as JSON and prints its Results as
// lines of JSON. It is what a process of the load runs instead of its own main.
func App(ctx context.Context, task string, in io.Reader, out io.Writer) error {
	var t Task
	if err := json.Unmarshal([]byte(task), &t); err != nil {
		return fmt.Errorf("read the task: %w", err)
	}
	t.Workers = max(t.Workers, 1)
	d, err := newDialer(t.Via, t.CAFile)
	if err != nil {
		return err
	}
	a := &app{Task: t, dial: d, out: json.NewEncoder(out)}
	run := map[Kind]func(context.Context, io.Reader) (Result, error){
		Fresh: a.fresh, Probe: a.probe, Load: a.load, Hold: a.hold, Bulk: a.bulk, Call: a.call, Browse: a.browse, Play: a.play,
	}[t.Kind]
	if run == nil {
		return fmt.Errorf("no such kind of task: %q", t.Kind)
	}
	r, err := run(ctx, in)
	if err != nil {
		return fmt.Errorf("%s: %w", t.Kind, err)
	}
	return a.out.Encode(r)
}

// app is a running Task.
type app struct {
	Task
	dial *dialer
	out  *json.Encoder
}

// target is the i-th of the targets, round and round.
func (a *app) target(i int) string { return a.Targets[i%len(a.Targets)] }

// wait sleeps until at, and on until it is the task's turn; false if ctx ends.
func (a *app) wait(ctx context.Context, at time.Time) bool {
	if d := time.Until(at); d > 0 {
		if !sleep(ctx, d) {
			return false
		}
	}
	for a.Turn > 0 {
		now := time.Now().UnixNano()
		turn := now / int64(a.Turn)
		if (turn%2 == 1) == a.Odd {
			break
		}
		if !sleep(ctx, time.Duration((turn+1)*int64(a.Turn)-now)) {
			return false
		}
	}
	return ctx.Err() == nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

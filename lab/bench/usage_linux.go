package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is what the service's process holds at one moment.
type usage struct {
	at          time.Time
	cpu         time.Duration // of all threads that live, since the start
	rss         int64         // bytes
	descriptors int
	threads     int
	goroutines  float64 // 0 if the service does not tell
	heap        float64 // bytes alive at the last collection; 0 if the service does not tell
}

func (v *service) usage(ctx context.Context) (usage, error) {
	pid := v.cmd.Process.Pid
	u := usage{at: time.Now()}
	var err error
	if u.cpu, err = processor(pid); err != nil {
		return u, err
	}
	if u.rss, err = resident(pid); err != nil {
		return u, err
	}
	for dir, n := range map[string]*int{"fd": &u.descriptors, "task": &u.threads} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, dir))
		if err != nil {
			return u, err
		}
		*n = len(entries)
	}
	var text string
	if err := v.get(ctx, "/v1/metrics", &text); err != nil {
		return u, err
	}
	u.goroutines = metric(text, "atlantic_goroutines")
	u.heap = metric(text, "atlantic_heap_live_bytes")
	return u, nil
}

// metric is a sample without labels of a Prometheus text, 0 if there is none.
func metric(text, name string) float64 {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			f, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return f
		}
	}
	return 0
}

// processor is what all threads of a process have run. Unlike utime and stime
// it counts nanoseconds, not ticks of 10 ms.
func processor(pid int) (total time.Duration, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d has no threads: %w", pid, err)
	}
	for _, path := range tasks {
		var ns int64
		if b, err := os.ReadFile(path); err == nil { // else it has just ended
			fmt.Sscan(string(b), &ns)
		}
		total += time.Duration(ns)
	}
	return total, nil
}

// resident is VmRSS of a process in bytes.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0, fmt.Errorf("VmRSS of process %d: %w", pid, err)
	}
	return kib << 10, nil
}

const mib = 1 << 20

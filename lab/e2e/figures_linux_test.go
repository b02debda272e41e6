package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// The figures that the product promises on an idle machine. Tests run beside
// other tests, so they fail only beyond slack times as much.
const (
	startTarget = 300 * time.Millisecond // from exec to the first byte by the proxy
	idleTarget  = 0.005                  // of one processor
	rssTarget   = 25 << 20               // bytes
	slack       = 3
)

// TestStartup takes the time from exec to the first byte that came through the
// proxy: from a server that only the proxy can reach.
func TestStartup(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	const hidden = "203.0.114.7" // the router has no route to it
	if out, err := l.Command(lab.Internet, "ip", "addr", "add", hidden+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ln, err := l.NS(lab.Internet).Listen("tcp", hidden+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // ends with ln
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("!"))
			c.Close()
		}
	}()
	fetch := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		c, err := l.NS(lab.Client).DialContext(ctx, "tcp", hidden+":80")
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	if fetch() == nil {
		t.Fatal("the server can be reached without the proxy, so nothing is measured")
	}
	toml := upstreamToml(t, l)
	var all []time.Duration
	for range 7 {
		begin := time.Now()
		s := start(t, l, toml, "--up")
		for fetch() != nil {
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("nothing comes through:\n%s", s.out)
			}
			time.Sleep(time.Millisecond)
		}
		all = append(all, time.Since(begin))
		s.await(api.On)
		s.stop()
	}
	slices.Sort(all)
	t.Logf("start to first byte by the proxy: median %v, best %v, worst %v (target %v)", all[len(all)/2], all[0], all[len(all)-1], startTarget)
	if all[len(all)/2] > slack*startTarget {
		t.Errorf("the start takes %v", all[len(all)/2])
	}
}

// TestIdle measures the service while it is on and nothing happens.
func TestIdle(t *testing.T) {
	for _, stack := range []string{"kernel", "userspace"} {
		t.Run(stack, func(t *testing.T) {
			l := lab.NewTest(t, lab.Options{})
			s := start(t, l, upstreamToml(t, l)+fmt.Sprintf("[tun]\nstack = %q\n", stack), "--up")
			s.await(api.On)
			works(t, l)
			time.Sleep(2 * time.Second)
			before := cpu(t, s.cmd.Process.Pid)
			begin := time.Now()
			time.Sleep(5 * time.Second)
			share := float64(cpu(t, s.cmd.Process.Pid)-before) / float64(time.Since(begin))
			rss := memory(t, s.cmd.Process.Pid, "VmRSS:")
			t.Logf("idle, %s path: %.3f %% of a processor (target %.1f), RSS %.1f MB (target %d), of which its own %.1f MB",
				stack, share*100, idleTarget*100, float64(rss)/1e6, rssTarget>>20, float64(memory(t, s.cmd.Process.Pid, "RssAnon:"))/1e6)
			if share > slack*idleTarget {
				t.Errorf("idle, it takes %.2f %% of a processor", share*100)
			}
			if rss > slack*rssTarget {
				t.Errorf("idle, it holds %d MB", rss>>20)
			}
			s.stop()
		})
	}
}

// cpu is what all threads of a process have run so far. Unlike utime and stime
// it counts nanoseconds, not ticks of 10 ms.
func cpu(t *testing.T, pid int) (total time.Duration) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	for _, path := range tasks {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that has just ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(b), &ns); err != nil {
			t.Fatal(err)
		}
		total += time.Duration(ns)
	}
	return total
}

// memory is one figure of /proc/PID/status, in bytes.
func memory(t *testing.T, pid int, field string) (bytes int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), field)
	if _, err := fmt.Sscan(rest, &bytes); !ok || err != nil {
		t.Fatalf("%s: %v", field, err)
	}
	return bytes << 10
}

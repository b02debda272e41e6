package config

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestHugeIsQuick(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIPPED: the race detector is slower than what is measured")
	}
	runtime.LockOSThread() // whose time it is, however busy the machine
	defer runtime.UnlockOSThread()
	for name, in := range map[string]string{
		"keys":     strings.Repeat("a=1\n", 250000),
		"many":     "[tun]\n" + manyKeys(60000),
		"rules":    strings.Repeat("[[rule]]\nport=[1]\nvia='auto'\n", 30000),
		"tables":   strings.Repeat("[[upstream]]\n", 80000),
		"list":     "[[rule]]\nvia='auto'\ncidr=[" + strings.Repeat("'10.0.0.1',", 90000) + "]",
		"dots":     strings.Repeat("a.b.c.d.e.f=1\n", 70000),
		"quotdots": `"` + strings.Repeat(`a"."`, 200000) + `" = 1`,
		"string":   "[tun]\nname='" + strings.Repeat("x", 1<<20-20) + "'",
		"nul":      strings.Repeat("\x00", 1<<20),
	} {
		start := threadTime(t)
		_, err := Parse("f", []byte(in))
		took := threadTime(t) - start
		if took > 2*time.Second {
			t.Errorf("%s: %v", name, took)
		}
		t.Log(name, took, err != nil)
	}
}

// threadTime is the processor's time that the calling thread has had.
func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d = %d\n", i, i)
	}
	return b.String()
}

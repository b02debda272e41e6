package engine

import (
	"net"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// A service that is to be On when it starts, by --up or as it was, tries again
// until it works: nobody is there to do it, and a laptop's network comes later
// than its services. An `up` that fails is the user's to repeat.
func TestStartIsTriedAgain(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close() // nothing listens there yet
	b := newBench(t, testConfig("http://"+address), func(o *Options) { o.Up = true })
	until(t, "the first try has failed", func() bool {
		st := b.Status()
		return st.State == api.Off && st.Cause != "" && strings.Contains(strings.Join(st.Warnings, ""), "tries again by itself")
	})
	if st := b.Status(); st.Protect.Blocking {
		t.Error("it holds traffic before the first success")
	}
	newFakeProxy(t, address, replyOK)
	b.host.Change(b.host.Uplink()) // the network is there: at once, not after a pause
	b.waitFor(t, api.On)
	if st := b.Status(); len(st.Warnings) != 0 || st.Cause != "" {
		t.Errorf("%q, %q", st.Cause, st.Warnings)
	}
}

// What the user says ends the tries.
func TestDownEndsTheTries(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	b := newBench(t, testConfig("http://"+address), func(o *Options) { o.Up = true })
	until(t, "a try has failed", func() bool { st := b.Status(); return st.State == api.Off && st.Cause != "" })
	if err := b.prefs(t, api.Prefs{On: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	newFakeProxy(t, address, replyOK)
	b.cureNow(t)
	until(t, "it is off for good", func() bool { st := b.Status(); return st.State == api.Off && len(st.Warnings) == 0 })
	if err := b.prefs(t, api.Prefs{On: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	b.waitFor(t, api.On)
}

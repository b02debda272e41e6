package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// session is a connection from outside into the client, as SSH's is.
type session struct {
	name string
	c    net.Conn
}

// echo wants what it sends to come back.
func (s session) echo(t *testing.T, when string) {
	t.Helper()
	s.c.SetDeadline(time.Now().Add(3 * time.Second))
	text := fmt.Sprintf("%s %s", s.name, when)
	back := make([]byte, len(text))
	if _, err := io.WriteString(s.c, text); err != nil {
		t.Errorf("%s, %s: %v", s.name, when, err)
	} else if _, err := io.ReadFull(s.c, back); err != nil || string(back) != text {
		t.Errorf("%s, %s: %q came back: %v", s.name, when, back, err)
	}
}

// sessions opens one connection from everywhere over both families.
func sessions(t *testing.T, l *lab.Lab, when, port string) (all []session) {
	t.Helper()
	for _, from := range []lab.Node{lab.Router, lab.LAN, lab.Internet} {
		for _, to := range []string{lab.Client4().String(), lab.Client6().String()} {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			c, err := l.Dial(ctx, from, "tcp", net.JoinHostPort(to, port))
			cancel()
			if err != nil {
				t.Errorf("%s: from %s to %s: %v", when, from, to, err)
				continue
			}
			t.Cleanup(func() { c.Close() })
			all = append(all, session{fmt.Sprintf("opened %s from %s to %s", when, from, to), c})
		}
	}
	return all
}

// serve gives every connection to the client's port to handle.
func serve(t *testing.T, l *lab.Lab, address string, handle func(net.Conn)) {
	t.Helper()
	serveAt(t, l, lab.Client, address, handle)
}

// serveAt gives every connection to a node's port to handle.
func serveAt(t *testing.T, l *lab.Lab, n lab.Node, address string, handle func(net.Conn)) {
	t.Helper()
	ln, err := l.NS(n).Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(wait.Wait)
	t.Cleanup(func() { ln.Close() })
}

// TestInbound: connections into this machine keep working through up and down,
// whenever they began, and never enter the TUN.
func TestInbound(t *testing.T) {
	for _, stack := range []string{"kernel", "userspace"} {
		t.Run(stack, func(t *testing.T) { inbound(t, stack) })
	}
}

func inbound(t *testing.T, stack string) {
	l := lab.NewTest(t, lab.Options{LAN: true})
	// Registered before the connections, so closed after them.
	serve(t, l, "[::]:22", func(c net.Conn) { io.Copy(c, c) }) // both families, as sshd does
	ticks := make(chan struct{})
	serve(t, l, "0.0.0.0:2323", func(c net.Conn) { // speaks first and unasked, as a shell does
		for i := 0; ; i++ {
			select {
			case <-ticks:
				return
			case <-time.After(10 * time.Millisecond):
			}
			if _, err := fmt.Fprintf(c, "%d\n", i); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { close(ticks) })
	s := start(t, l, upstreamToml(t, l)+fmt.Sprintf("[tun]\nstack = %q\n", stack))
	s.answers()
	all := sessions(t, l, "before up", "22")
	talker, err := l.Dial(t.Context(), lab.Internet, "tcp", lab.Client4().String()+":2323")
	if err != nil {
		t.Fatal(err)
	}
	defer talker.Close()
	lines := bufio.NewScanner(talker)
	talks := func(when string) {
		t.Helper()
		talker.SetReadDeadline(time.Now().Add(3 * time.Second))
		for range 20 {
			if !lines.Scan() {
				t.Fatalf("%s: the talker is silent: %v", when, lines.Err())
			}
		}
	}
	for round := range 3 {
		s.must("up")
		seen, flows := s.intoTUN(), s.status().Flows.Total
		during := fmt.Sprintf("during up %d", round+1)
		all = append(all, sessions(t, l, during, "22")...)
		for _, c := range all {
			c.echo(t, during)
		}
		talks(during)
		if st := s.status(); st.State != api.On || st.Flows.Total != flows {
			t.Errorf("%s: %s, %d flows more", during, st.State, st.Flows.Total-flows)
		}
		if more := s.intoTUN() - seen; more != 0 {
			t.Errorf("%s: %d packets went into the TUN", during, more)
		}
		works(t, l)
		if s.intoTUN() == seen {
			t.Errorf("%s: not even a flow of this machine went into the TUN", during)
		}
		s.must("down")
		after := fmt.Sprintf("after down %d", round+1)
		for _, c := range all {
			c.echo(t, after)
		}
		talks(after)
	}
	s.must("up")
	s.kill()
	for _, c := range all {
		c.echo(t, "after kill -9")
	}
	s.launch()
	s.await(api.On)
	for _, c := range all {
		c.echo(t, "after the restart")
	}
	s.stop()
}

// intoTUN is how many packets the kernel has sent into the TUN.
func (s *service) intoTUN() (packets int) {
	s.t.Helper()
	out, _ := inClient(s.t, s.lab, "cat", "/sys/class/net/atlantic0/statistics/tx_packets")
	if _, err := fmt.Sscan(out, &packets); err != nil {
		s.t.Errorf("%v: %s", err, out)
	}
	return packets
}

// TestRemoteShell types up and down in a shell that runs over a connection from
// the internet.
func TestRemoteShell(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	s := start(t, l, upstreamToml(t, l))
	s.answers()
	serve(t, l, "0.0.0.0:22", func(c net.Conn) {
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		sh := l.Command(lab.Client, "sh")
		sh.Stdin, sh.Stdout, sh.Stderr = f, f, f
		sh.Run()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c, err := l.Dial(ctx, lab.Internet, "tcp", lab.Client4().String()+":22")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lines := bufio.NewReader(c)
	typed := func(line string) {
		t.Helper()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "%s; echo exit $?.\n", line)
		var all strings.Builder
		for {
			text, err := lines.ReadString('\n')
			all.WriteString(text)
			if err != nil {
				t.Fatalf("%s: %v after\n%s", line, err, &all)
			}
			if code, ok := strings.CutPrefix(text, "exit "); ok {
				if code != "0.\n" {
					t.Errorf("%s:\n%s", line, &all)
				}
				return
			}
		}
	}
	atlantic := filepath.Join(bin, "atlantic") + " --socket " + s.socket() + " "
	for range 2 {
		typed(atlantic + "up")
		typed(atlantic + "status")
		typed("curl -sS --max-time 5 http://example.test/proto")
		typed(atlantic + "down")
	}
	c.Close()
	s.stop()
}

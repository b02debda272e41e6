package cli

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/apiserver"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// TestWatchWithoutTerminal: a service that goes away is told of once, and shown
// again when it is back.
func TestWatchWithoutTerminal(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "atl") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &app{socket: filepath.Join(dir, "s")}
	stdout, stderr := linesOf(t, &a.out), linesOf(t, &a.err)
	ctx, enough := context.WithCancel(t.Context())
	ended := make(chan error)
	stop := serveAt(t, a.socket)
	go func() { ended <- a.watchStatus(ctx, false) }()
	if line := <-stdout; !strings.Contains(line, "Off") {
		t.Errorf("at first %q", line)
	}
	stop()
	if line := <-stderr; line != "the service is not running; waiting for it to come back" {
		t.Errorf("when the service went: %q", line)
	}
	time.Sleep(1200 * time.Millisecond) // it looks again after a second
	stop = serveAt(t, a.socket)
	select {
	case line := <-stdout:
		if !strings.Contains(line, "Off") {
			t.Errorf("when the service was back: %q", line)
		}
	case line := <-stderr:
		t.Errorf("said again: %q", line)
	}
	enough()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	stop()
}

// linesOf makes *p a printer whose lines arrive on the channel.
func linesOf(t *testing.T, p **printer) <-chan string {
	r, w := io.Pipe()
	*p = newPrinter(w, func(s string) string { return s })
	lines := make(chan string, 16)
	t.Cleanup(func() { w.Close() })
	go func() { // ends with w
		for s := bufio.NewScanner(r); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

// serveAt is a service at path, until stop is called.
func serveAt(t *testing.T, path string) (stop func()) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := apiserver.New(newFakeBackend(), apiserver.Options{PeerOf: func(net.Conn) (localsock.Peer, error) {
		return localsock.Peer{Known: true, Admin: true, Name: "root"}, nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- srv.Serve(ctx, ln) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

package cli

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/apiserver"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// A service that is stopped (SIGSTOP) takes connections and answers nothing:
// something is said within a second, and the command ends long before the time
// that a slow upstream may take.
func TestFrozenService(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	for _, line := range []string{"up", "use paris", "down", "session new"} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			var stderr lockedBuffer
			signed := make(chan time.Duration, 1)
			began := time.Now()
			stderr.first = func() { signed <- time.Since(began) }
			code := Main(append([]string{"--socket", socket}, strings.Fields(line)...), Options{Stdout: &bytes.Buffer{}, Stderr: &stderr})
			took := time.Since(began)
			if code != exitError || !strings.Contains(stderr.String(), "error: the service is there, but does not answer\nhint:  restart it: ") {
				t.Errorf("exit code %d, %q", code, stderr.String())
			}
			if sign := <-signed; sign > signAfter+took/4 || took > doubtAfter+doubtEnds+5*time.Second { // a busy machine takes its time
				t.Errorf("the first sign after %v, the end after %v", sign, took)
			}
		})
	}
}

// slow is a service whose upstreams take their time.
type slow struct {
	*fakeBackend
}

func (slow) SetPrefs(ctx context.Context, _ api.Prefs) (api.Status, error) {
	select {
	case <-time.After(doubtAfter + time.Second):
	case <-ctx.Done():
	}
	return api.Status{State: api.On, Upstream: api.Upstream{Name: "paris"}}, nil
}

// A slow upstream is waited for: the service answers other calls meanwhile.
func TestSlowUpstream(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	peer := localsock.Peer{Known: true, Admin: true}
	server := apiserver.New(slow{newFakeBackend()}, apiserver.Options{PeerOf: func(net.Conn) (localsock.Peer, error) { return peer, nil }})
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() { server.Serve(ctx, ln) })
	defer wait.Wait()
	defer cancel()
	var stdout, stderr bytes.Buffer
	code := Main([]string{"--socket", socket, "use", "paris"}, Options{Stdout: &stdout, Stderr: &stderr})
	if code != exitOK || !strings.Contains(stdout.String(), "On · paris") || stderr.String() != "looking at the upstream …\n" {
		t.Errorf("exit code %d, %q, %q", code, stdout.String(), stderr.String())
	}
}

// lockedBuffer is what has been printed so far; first is called once, before
// the first of it is kept.
type lockedBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	once  sync.Once
	first func()
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.once.Do(l.first)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

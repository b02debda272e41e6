package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// patience with the service, for each of starting, switching and stopping.
const patience = 10 * time.Second

// service is atlanticd in the client's namespace, steered by its local API.
type service struct {
	cmd     *exec.Cmd
	log     bytes.Buffer // read only after exited
	exited  chan struct{}
	once    sync.Once
	api     *http.Client
	started time.Duration // from exec to state "on"
}

func startService(ctx context.Context, l *lab.Lab, binary string, connect, socks *proxy.Proxy) (*service, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	config := filepath.Join(l.Dir(), "atlantic.toml")
	text := fmt.Sprintf("[dns]\nservers = [\"udp://%s\"]\n\n[[upstream]]\nname = \"connect\"\nurl = %q\n\n[[upstream]]\nname = \"socks5\"\nurl = %q\n",
		lab.DNS4(), connect.URL(), socks.URL())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	socket := "/run/atlantic/atlantic.sock"
	outside := l.Path(lab.Client, socket)
	s := &service{exited: make(chan struct{}), api: &http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", outside)
		}}}}
	s.cmd = l.Command(lab.Client, binary, "run", "--up", "--config", config,
		"--state", filepath.Join(l.Dir(), "state"), "--socket", socket)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	start := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() { // ends with the program; waited for by stop
		s.cmd.Wait()
		close(s.exited)
	}()
	if err := s.await(ctx, "connect"); err != nil {
		s.stop()
		return nil, fmt.Errorf("%w\n%s", err, strings.TrimSpace(s.log.String()))
	}
	s.started = time.Since(start)
	return s, nil
}

// await waits until the service is on, by the upstream of that name.
func (s *service) await(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error // of a call that was not merely cut short
	for {
		st, err := s.call(ctx, http.MethodGet, "/v1/status", nil)
		if ctx.Err() == nil {
			last = err
		}
		if err == nil && st.State == api.On && st.Upstream.Name == name {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("atlanticd ended at its start")
		case <-ctx.Done():
			return fmt.Errorf("atlanticd is not on by %s after %v: state %q, cause %q, last error %v", name, patience, st.State, st.Cause, last)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// use switches the upstream.
func (s *service) use(ctx context.Context, name string) error {
	body, err := json.Marshal(api.Prefs{Upstream: &name})
	if err != nil {
		return err
	}
	if _, err := s.call(ctx, http.MethodPatch, "/v1/prefs", body); err != nil {
		return err
	}
	return s.await(ctx, name)
}

func (s *service) call(ctx context.Context, method, path string, body []byte) (api.Status, error) {
	var st api.Status
	req, err := http.NewRequestWithContext(ctx, method, "http://atlantic"+path, bytes.NewReader(body))
	if err != nil {
		return st, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := s.api.Do(req)
	if err != nil {
		return st, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return st, err
	}
	if res.StatusCode/100 != 2 {
		return st, fmt.Errorf("%s %s: %s: %s", method, path, res.Status, bytes.TrimSpace(b))
	}
	return st, json.Unmarshal(b, &st)
}

// stop asks the service to end, and kills it if it does not. It is idempotent.
func (s *service) stop() (err error) {
	s.once.Do(func() {
		s.api.CloseIdleConnections()
		s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.exited:
		case <-time.After(patience):
			s.cmd.Process.Kill()
			<-s.exited
			err = fmt.Errorf("atlanticd did not end within %v of SIGTERM", patience)
		}
	})
	return err
}

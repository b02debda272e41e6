package bench

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
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// service is atlanticd in the client's namespace, as users run it.
type service struct {
	cmd    *exec.Cmd
	log    bytes.Buffer // read only after exited
	exited chan struct{}
	api    *http.Client
}

// serve starts the service with upstreams (TOML tables "[[upstream]]") and waits until
// it is on by the first. fresh forgets what an earlier one has learnt.
func (s *stage) serve(ctx context.Context, upstreams string, fresh bool) (*service, error) {
	binary, err := filepath.Abs(s.opt.Atlanticd)
	if err != nil {
		return nil, err
	}
	config, state := filepath.Join(s.Dir(), "atlantic.toml"), filepath.Join(s.Dir(), "state")
	text := fmt.Sprintf("[dns]\nservers = [\"udp://%s\"]\n%s", lab.DNS4(), upstreams)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if fresh {
		if err := os.RemoveAll(state); err != nil {
			return nil, err
		}
	}
	socket := "/run/atlantic/atlantic.sock"
	outside := s.Path(lab.Client, socket)
	v := &service{exited: make(chan struct{}), api: &http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", outside)
		}}}}
	v.cmd = s.Command(lab.Client, binary, "run", "--up", "--config", config, "--state", state, "--socket", socket)
	v.cmd.Stdout, v.cmd.Stderr = &v.log, &v.log
	if err := v.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() { // ends with the program; waited for by Close
		v.cmd.Wait()
		close(v.exited)
	}()
	if err := v.await(ctx); err != nil {
		v.Close()
		return nil, fmt.Errorf("%w\n%s", err, strings.TrimSpace(v.log.String()))
	}
	return v, nil
}

// upstream is one [[upstream]] of a configuration; more are further lines.
func (s *stage) upstream(url string, more ...string) string {
	text := fmt.Sprintf("\n[[upstream]]\nname = \"bench\"\nurl = %q\n", url)
	if strings.HasPrefix(url, "https:") {
		text += fmt.Sprintf("ca = %q\n", s.CAFile())
	}
	for _, line := range more {
		text += line + "\n"
	}
	return text
}

func (v *service) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var st api.Status
	var err error
	for {
		if err = v.get(ctx, "/v1/status", &st); err == nil && st.State == api.On {
			return nil
		}
		select {
		case <-v.exited:
			return fmt.Errorf("atlanticd ended at its start")
		case <-ctx.Done():
			return fmt.Errorf("atlanticd is not on: state %q, cause %q, last error %v", st.State, st.Cause, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// get is a GET of the local API; into takes the JSON, or is a *string.
func (v *service) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://atlantic"+path, nil)
	if err != nil {
		return err
	}
	res, err := v.api.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", path, res.Status, bytes.TrimSpace(b))
	}
	if text, ok := into.(*string); ok {
		*text = string(b)
		return nil
	}
	return json.Unmarshal(b, into)
}

// Close ends the service, and kills it if it does not end. It is idempotent.
func (v *service) Close() error {
	v.api.CloseIdleConnections()
	v.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-v.exited:
		return nil
	case <-time.After(patience):
		v.cmd.Process.Kill()
		<-v.exited
		return fmt.Errorf("atlanticd did not end within %v of SIGTERM", patience)
	}
}

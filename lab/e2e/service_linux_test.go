package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// bin is where TestMain has built the programs.
var bin string

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIPPED: not root: the end-to-end tests make network namespaces; run them as root")
		os.Exit(m.Run()) // each test skips itself
	}
	// Under nohup SIGHUP is ignored, which the programs would inherit; a signal that
	// is caught here is not (execve(2)).
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "atlantic-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	build := exec.Command("go", "build", "-o", dir, "../../app/atlantic", "../../app/atlanticd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// service is atlanticd in the client's namespace.
type service struct {
	t      *testing.T
	lab    *lab.Lab
	dir    string   // configuration, state and socket
	wrap   []string // put before the program: setpriv, unshare
	cmd    *exec.Cmd
	out    *output
	exited chan error // gets the result of Wait, once
}

// output keeps what a program printed; safe while it still prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// labDNS is the configuration that every test needs: names of the lab that are
// asked for beyond addresses are answered by its own server.
const labDNS = "[dns]\nservers = [\"tcp://198.51.100.53\"]\n"

// start runs the service with a configuration and waits until it listens.
func start(t *testing.T, l *lab.Lab, toml string, args ...string) *service {
	t.Helper()
	return startIn(t, l, t.TempDir(), nil, toml, args...)
}

// startIn is start with a folder of the caller's and a command that runs the
// service.
func startIn(t *testing.T, l *lab.Lab, dir string, wrap []string, toml string, args ...string) *service {
	t.Helper()
	s := &service{t: t, lab: l, dir: dir, wrap: wrap}
	if err := os.WriteFile(s.config(), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	s.launch(args...)
	return s
}

func (s *service) config() string { return filepath.Join(s.dir, "atlantic.toml") }
func (s *service) socket() string { return filepath.Join(s.dir, "sock") }
func (s *service) state() string  { return filepath.Join(s.dir, "state") }

// command runs atlanticd in the client's namespace.
func (s *service) command(args ...string) *exec.Cmd {
	argv := append(slices.Clone(s.wrap), filepath.Join(bin, "atlanticd"))
	argv = append(argv, args...)
	return s.lab.Command(lab.Client, argv[0], argv[1:]...)
}

// launch starts the program, again after a kill.
func (s *service) launch(args ...string) {
	s.t.Helper()
	s.cmd = s.command(append([]string{"run", "--config", s.config(), "--state", s.state(), "--socket", s.socket()}, args...)...)
	s.out = &output{}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	cmd, exited := s.cmd, make(chan error, 1)
	s.exited = exited
	go func() { exited <- cmd.Wait() }()
	s.t.Cleanup(func() {
		s.stop()
		if s.t.Failed() {
			s.t.Logf("the service said:\n%s", s.out)
		}
	})
}

// stop ends the service in order; it may be called twice.
func (s *service) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-s.exited:
		s.exited <- err
	case <-time.After(15 * time.Second):
		s.cmd.Process.Signal(syscall.SIGQUIT)
		time.Sleep(time.Second)
		s.cmd.Process.Kill()
		s.t.Errorf("the service does not end on SIGTERM:\n%s", s.out)
	}
}

// kill ends the service without a chance to clean up.
func (s *service) kill() {
	s.cmd.Process.Kill()
	err := <-s.exited
	s.exited <- err
}

// cli runs a verb of atlantic and returns its output and exit code.
func (s *service) cli(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	cmd := s.lab.Command(lab.Client, filepath.Join(bin, "atlantic"), append([]string{"--socket", s.socket()}, args...)...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		s.t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// must runs a verb that has to succeed.
func (s *service) must(args ...string) string {
	s.t.Helper()
	out, stderr, code := s.cli(args...)
	if code != 0 {
		s.t.Fatalf("atlantic %s: exit %d\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

func (s *service) status() (st api.Status) {
	out, _, code := s.cli("status", "--json")
	if code != 0 && code != 3 {
		return st
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		s.t.Fatalf("status --json: %v\n%s", err, out)
	}
	return st
}

// await waits for a state.
func (s *service) await(want api.State) api.Status {
	s.t.Helper()
	var st api.Status
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if st = s.status(); st.State == want {
			return st
		}
	}
	s.t.Fatalf("state is %q (%s), want %q\n%s", st.State, st.Cause, want, s.out)
	return st
}

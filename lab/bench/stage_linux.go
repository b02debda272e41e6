package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// AppVariable in the environment makes a process of the load: main has to hand
// its value to App. It is how this program runs itself in a namespace.
const AppVariable = "ATLANTIC_BENCH_TASK"

// stage is one lab with a target, and what runs in it.
type stage struct {
	*lab.Lab
	opt    *Options
	target *target
}

func (o *Options) newStage(opt lab.Options) (*stage, error) {
	opt.LAN = true // where the apps run that do without us
	l, err := lab.New(opt)
	if err != nil {
		return nil, err
	}
	t, err := startTarget(l)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &stage{Lab: l, opt: o, target: t}, nil
}

func (s *stage) Close() error { return errors.Join(s.target.Close(), s.Lab.Close()) }

// targets are n addresses that all lead to the target.
func targets(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("198.51.100.%d:%d", 100+i%100, targetPort))
	}
	return all
}

// end is the URL of a proxy that is every target itself: see target.
func end() string { return fmt.Sprintf("socks5://%s:%d", lab.Upstream4(15), endPort) }

// names are n host names that all lead to the target.
func names(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("site%d.example.test:%d", i, targetPort))
	}
	return all
}

// proxy starts one of the lab's own proxies; it listens on the scheme's usual
// port.
func (s *stage) proxy(scheme proxy.Scheme, index int, http1 bool) (*proxy.Proxy, error) {
	port := map[proxy.Scheme]uint16{proxy.SOCKS5: 1080, proxy.HTTP: 8080, proxy.HTTPS: 8443}[scheme]
	return s.StartProxy(lab.ProxyOptions{Scheme: scheme, Index: index, Port: port, HTTP1Only: http1})
}

// load is a running Task.
type load struct {
	task Task
	cmd  *exec.Cmd
	in   io.Closer
	out  *json.Decoder
	err  strings.Builder // read only after Wait
	stop func() bool
}

// start runs a task in a node, in a process of its own. The caller must call
// finish.
func (s *stage) start(ctx context.Context, n lab.Node, t Task) (*load, error) {
	t.CAFile = s.CAFile()
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l := &load{task: t, cmd: s.Command(n, self)}
	l.cmd.Env = append(os.Environ(), AppVariable+"="+string(text))
	l.cmd.Stderr = &l.err
	in, err := l.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	l.in, l.out = in, json.NewDecoder(out)
	if err := l.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start an app: %w", err)
	}
	l.stop = context.AfterFunc(ctx, func() { l.cmd.Process.Signal(syscall.SIGKILL) })
	return l, nil
}

// next waits for the next Result.
func (l *load) next() (r Result, err error) {
	if err := l.out.Decode(&r); err != nil {
		return r, fmt.Errorf("app (%s): %w", l.task.Kind, err)
	}
	return r, nil
}

// finish has a Hold end, waits for the last Result and for the process.
func (l *load) finish() (Result, error) {
	l.in.Close()
	r, err := l.next()
	if wait := l.cmd.Wait(); wait != nil {
		err = fmt.Errorf("app (%s): %w: %s", l.task.Kind, wait, strings.TrimSpace(l.err.String()))
	}
	l.stop()
	return r, err
}

// run is start and finish.
func (s *stage) run(ctx context.Context, n lab.Node, t Task) (Result, error) {
	l, err := s.start(ctx, n, t)
	if err != nil {
		return Result{}, err
	}
	return l.finish()
}

package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

const (
	upTimeout    = 45 * time.Second // for a start to succeed or fail
	blockedGrace = 3 * time.Second  // for a service that was Blocked before to recover
	offGrace     = 2 * time.Second  // for the stream of a service that went Off to end
	upstreamVar  = "ATLANTIC_UPSTREAM"
)

func (a *app) up() *cobra.Command {
	var choice string
	var wait, asJSON bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Turn it on: all traffic leaves through the upstream",
		Long: `Turn it on: all traffic leaves through the upstream.

The upstream is a name from the configuration, "auto", or a URL:
  socks5://user:password@host:1080   http://host:8080   https://host   direct://
A password on the command line can be seen by others: give "-" to type the URL
on standard input, or set ` + upstreamVar + `.`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			prefs, err := a.upPrefs(cmd, choice)
			if err != nil {
				return err
			}
			st, err := waiting(cmd.Context(), a, "looking at the upstream", func(ctx context.Context, c *client.Client) (api.Status, error) {
				return c.SetPrefs(ctx, prefs)
			})
			if err != nil {
				return err
			}
			if wait && st.State != api.On {
				asked := st.Upstream
				if st, err = a.await(cmd.Context(), "connecting", upTimeout, untilOn(time.Now)); err != nil {
					return notKept(err, asked)
				}
			}
			return a.result(st, asJSON)
		},
	}
	cmd.Flags().StringVarP(&choice, "upstream", "u", "", "name, \"auto\", URL, or - for standard input")
	cmd.Flags().BoolVar(&wait, "wait", true, "wait until it is on or has failed")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the status as JSON, also if it fails")
	return cmd
}

// upPrefs says what `up` asks for.
func (a *app) upPrefs(cmd *cobra.Command, choice string) (api.Prefs, error) {
	on := true
	prefs := api.Prefs{On: &on}
	switch {
	case choice == "-":
		line, err := bufio.NewReader(io.LimitReader(a.opt.Stdin, 64<<10)).ReadString('\n')
		if choice = strings.TrimSpace(line); choice == "" {
			return prefs, &usageError{"there is no upstream on standard input" + because(err)}
		}
	case cmd.Flags().Changed("upstream"):
		if choice == "" {
			return prefs, &usageError{"--upstream needs a name or a URL"}
		}
		// What cannot be read may have one too.
		if s, err := proxy.ParseURL("", choice); s.Password != "" || err != nil && strings.Contains(choice, "@") {
			a.err.line("%s other users of this machine can see the password in the list of processes; better: --upstream -",
				a.err.yellow("warning:"))
		}
	default:
		choice = os.Getenv(upstreamVar)
	}
	if choice != "" {
		prefs.Upstream = &choice
	}
	return prefs, nil
}

func because(err error) string {
	if err == nil || errors.Is(err, io.EOF) {
		return ""
	}
	return ": " + err.Error()
}

// verdict looks at one status; it returns done once there is nothing more to
// wait for, with an error if that is not what was wanted.
type verdict func(st api.Status) (done bool, err error)

// untilOn waits for On. A service that was Blocked before gets a moment to
// try anew; one that ends up Off or Blocked has failed. Off without a cause is
// either somebody's `down` or the service's end, which ends the stream too.
func untilOn(now func() time.Time) verdict {
	began, moved, off := now(), false, time.Time{}
	return func(st api.Status) (bool, error) {
		switch st.State {
		case api.On:
			return true, nil
		case api.Starting, api.Stopping:
			moved, off = true, time.Time{}
			return false, nil
		case api.Off:
			if off.IsZero() {
				off = now()
			}
			if st.Cause == "" && now().Sub(off) < offGrace {
				return false, nil
			}
		case api.Blocked:
			if !moved && now().Sub(began) < blockedGrace {
				return false, nil
			}
			return true, notConnected(st, cmp.Or(st.Protect.Effect, "it is blocked"))
		}
		return true, notConnected(st, strings.TrimSuffix("it is off, "+st.Protect.Effect, ", "))
	}
}

func untilOff(st api.Status) (bool, error) { return st.State == api.Off, nil }

func notConnected(st api.Status, now string) error {
	f := &notOn{failure{code: exitNotConnected, msg: "not connected: " + now, hint: st.Hint}, st}
	if st.Cause != "" {
		f.msg = "not connected: " + st.Cause + "; " + now
	}
	if f.hint == "" {
		f.hint = "see: atlantic status"
	}
	return f
}

// notKept adds which upstream is chosen after an `up` that failed, if that is
// not the one that was to be used.
func notKept(err error, asked api.Upstream) error {
	f := (*notOn)(nil)
	if !errors.As(err, &f) {
		return err
	}
	if now, was := upstreamText(f.status.Upstream), upstreamText(asked); now != was {
		f.msg += "\nthe upstream chosen is now " + now + ", not " + was
	}
	return err
}

// await watches the service until v has decided, and returns the status it
// decided on. A terminal shows meanwhile that something is going on.
func (a *app) await(ctx context.Context, doing string, limit time.Duration, v verdict) (st api.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	states := make(chan api.Status)
	ended := make(chan error, 1)
	go func() { // ends with ctx, and await waits for it
		ended <- a.client().Watch(ctx, func(ev api.Event) error {
			if ev.Status == nil {
				return nil
			}
			select {
			case states <- *ev.Status:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	spin := newSpinner(a.err)
	defer spin.clear()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	known := false
	for {
		select {
		case st = <-states:
			known = true
		case <-tick.C:
			spin.turn(doing)
		case err := <-ended:
			if errors.Is(err, context.DeadlineExceeded) {
				err = &failure{exitNotConnected, fmt.Sprintf("still %s after %v", doing, limit), "see: atlantic status"}
			} else if errors.Is(err, io.EOF) {
				err = &failure{exitError, "the service ended while " + doing, lookAtLog}
			}
			return st, err
		}
		if !known {
			continue
		}
		if done, err := v(st); done {
			cancel()
			<-ended
			return st, err
		}
	}
}

// spinner shows on a terminal that something is going on; elsewhere nothing.
type spinner struct {
	p     *printer
	began time.Time
	step  int
}

func newSpinner(p *printer) *spinner { return &spinner{p: p, began: time.Now()} }

func (s *spinner) turn(doing string) {
	const quiet = 200 * time.Millisecond // what is done by then needs no spinner
	if !s.p.tty || time.Since(s.began) < quiet {
		return
	}
	frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	fmt.Fprintf(s.p.w, "\r\x1b[K%c %s … %s", frames[s.step%len(frames)], doing, age(time.Since(s.began)))
	s.step++
}

func (s *spinner) clear() {
	if s.step > 0 {
		fmt.Fprint(s.p.w, "\r\x1b[K")
	}
}

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func (a *app) status() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how it is; exit code 3 unless it is on",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return a.watchStatus(cmd.Context(), asJSON)
			}
			st, err := a.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				if err := a.out.json(st); err != nil {
					return err
				}
			} else {
				a.out.lines(a.out.statusLines(st, time.Now()))
			}
			if st.State != api.On {
				return &exitWith{exitNotConnected}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "keep showing it (with --json: one status per line)")
	return cmd
}

// watchStatus shows every status until the user has had enough. On a terminal
// it stays in place; elsewhere each change of state is one line. It waits for a
// service that goes away to come back.
func (a *app) watchStatus(ctx context.Context, asJSON bool) error {
	screen := liveScreen{p: a.out}
	last := ""
	show := func(ev api.Event) error {
		switch {
		case ev.Status == nil:
		case asJSON:
			return json.NewEncoder(a.out.w).Encode(ev.Status)
		case a.out.tty:
			screen.show(a.out.statusLines(*ev.Status, time.Now()))
		default:
			if line := string(a.out.headline(*ev.Status)); line != last {
				a.out.line("%s", styled(line))
				last = line
			}
		}
		return nil
	}
	seen, gone := false, false
	for {
		err := a.client().Watch(ctx, func(ev api.Event) error { seen, gone = true, false; return show(ev) })
		switch {
		case ctx.Err() != nil:
			return nil // the user's Ctrl-C is how this ends
		case seen && (errors.Is(err, io.EOF) || errors.Is(err, client.ErrAbsent)):
			switch {
			case a.out.tty && !asJSON:
				screen.show([]styled{a.out.text("%s the service is not running", a.out.red("×"))})
			case !gone:
				a.err.line("the service is not running; waiting for it to come back")
			}
			gone, last = true, ""
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// liveScreen redraws a few lines in place.
type liveScreen struct {
	p     *printer
	lines int // on the screen now
}

func (s *liveScreen) show(lines []styled) {
	var b strings.Builder
	b.WriteString("\x1b[?7l") // a long line is cut, not wrapped: the count below stays right
	if s.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.lines)
	}
	for _, l := range lines {
		fmt.Fprintf(&b, "\r\x1b[K%s\n", l)
	}
	b.WriteString("\x1b[J\x1b[?7h")
	io.WriteString(s.p.w, b.String())
	s.lines = len(lines)
}

func (p *printer) lines(lines []styled) {
	for _, l := range lines {
		fmt.Fprintln(p.w, l)
	}
}

// summary says in one line what is true after up, down or use.
func (a *app) summary(st api.Status) {
	a.out.line("%s", a.out.headline(st))
	if st.State == api.On && st.TUN.Name == "" && st.Proxy != "" {
		a.out.line("%s", a.out.dim("  only apps that use the proxy "+st.Proxy+" (HTTP and SOCKS5) take part: the service runs without a TUN"))
	}
	a.out.lines(a.out.warnings(st))
}

const notKeptText = "what was asked for is in force, but will be forgotten at the next start"

// result shows what is true after up, down or use. What was to be kept and could
// not be is an error, although it is in force.
func (a *app) result(st api.Status, asJSON bool) error {
	if st.Unkept != "" {
		if !asJSON {
			a.out.line("%s", a.out.headline(st))
		}
		return &notOn{failure{exitError, notKeptText + ": " + st.Unkept, "mend the disk, and ask again; the service tries again too"}, st}
	}
	if asJSON {
		return a.out.json(st)
	}
	a.summary(st)
	return nil
}

// headline is the state in one line.
func (p *printer) headline(st api.Status) styled {
	switch st.State {
	case api.On:
		h := p.text("%s %s · %s", p.green("●"), p.bold("On"), upstreamText(st.Upstream))
		if st.Upstream.RTTms > 0 {
			h += p.text(" · %s", millis(st.Upstream.RTTms))
		}
		return h
	case api.Starting:
		return p.text("%s %s · %s", p.yellow("◐"), p.bold("Connecting"), upstreamText(st.Upstream))
	case api.Stopping:
		return p.text("%s %s", p.yellow("◐"), p.bold("Disconnecting"))
	case api.Blocked:
		return p.text("%s %s%s%s", p.red("■"), p.bold("Blocked"), dot(st.Protect.Effect), colon(st.Cause))
	case api.Off:
		return p.text("%s %s%s%s", p.dim("○"), p.bold("Off"), dot(st.Protect.Effect), colon(st.Cause))
	}
	return p.text("? %s", string(st.State))
}

func dot(effect string) string {
	if effect == "" { // a service older than this program does not say
		return ""
	}
	return " · " + effect
}

func colon(cause string) string {
	if cause == "" {
		return ""
	}
	return ": " + cause
}

func upstreamText(u api.Upstream) string {
	switch {
	case u.Scheme == "direct" && u.Name == "direct":
		return "direct (no proxy)"
	case u.Scheme == "direct":
		return u.Name + " (direct, no proxy)"
	case u.Name == "" && u.Scheme == "":
		return "no upstream"
	case u.Address == "" || strings.Contains(u.Name, u.Address):
		return u.Name
	}
	return u.Name + " (" + u.Scheme + "://" + u.Address + ")"
}

// statusLines is the status at one glance.
func (p *printer) statusLines(st api.Status, now time.Time) []styled {
	out := []styled{p.headline(st)}
	add := func(name, format string, args ...any) {
		out = append(out, p.text("  %s %s", p.dim(fmt.Sprintf("%-9s", name)), p.text(format, args...)))
	}
	if st.Hint != "" {
		add("hint", "%s", st.Hint)
	}
	if !st.Since.IsZero() {
		add("since", "%s", age(now.Sub(st.Since)))
	}
	if st.State != api.Off || st.Flows.Total > 0 {
		direct := ""
		if st.Bytes.DirectUp+st.Bytes.DirectDown > 0 {
			direct = fmt.Sprintf("   directly ↑ %s ↓ %s", size(st.Bytes.DirectUp), size(st.Bytes.DirectDown))
		}
		add("traffic", "↑ %s  ↓ %s%s", size(st.Bytes.Up), size(st.Bytes.Down), direct)
		add("flows", "%d open · %d in all · %d refused · %d blocked", st.Flows.Open, st.Flows.Total, st.Flows.Refused, st.Flows.Blocked)
	}
	if l := st.Latency; l.FirstByte.P50 > 0 {
		add("latency", "first byte %s (p95 %s) · of which ours %s", millis(l.FirstByte.P50), millis(l.FirstByte.P95), millis(l.Added.P50))
	}
	if st.Flows.Carried > 0 {
		add("reuse", "%s", reuse(st))
	}
	if c := capture(st); c != "" {
		add("capture", "%s", c)
	}
	if len(st.Networks) > 0 {
		add("beside", "%s", beside(st.Networks))
	}
	return append(out, p.warnings(st)...)
}

// beside lists the networks that keep their own way, a few prefixes of each.
func beside(networks []api.Network) string {
	const most = 4
	var parts []string
	for _, n := range networks {
		s := n.Interface
		for _, p := range n.Prefixes[:min(len(n.Prefixes), most)] {
			s += " " + p.String()
		}
		if more := len(n.Prefixes) - most; more > 0 {
			s += fmt.Sprintf(" and %d more", more)
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, " · ")
}

// reuse says what the flows were spared.
func reuse(st api.Status) string {
	s := fmt.Sprintf("%.0f %% of connections needed no new handshake", st.Reuse*100)
	if st.Flows.Early > 0 {
		s += fmt.Sprintf(" · %d sent their first bytes with the request", st.Flows.Early)
	}
	return s
}

// capture says how traffic gets in.
func capture(st api.Status) string {
	var parts []string
	if st.TUN.Name != "" {
		families := "IPv4"
		if st.TUN.IPv6 {
			families = "IPv4 and IPv6"
		}
		parts = append(parts, fmt.Sprintf("%s (%s path, %s)", st.TUN.Name, st.TUN.Path, families))
	}
	if st.DNS.Mode != "" {
		parts = append(parts, "DNS "+st.DNS.Mode)
	}
	if st.Proxy != "" {
		parts = append(parts, "proxy "+st.Proxy)
	}
	return strings.Join(parts, " · ")
}

func (p *printer) warnings(st api.Status) []styled {
	var out []styled
	if st.Unkept != "" {
		out = append(out, p.text("%s %s: %s", p.yellow("!"), notKeptText, st.Unkept))
	}
	for _, w := range st.Warnings {
		out = append(out, p.text("%s %s", p.yellow("!"), w))
	}
	if st.UDP.Blocked > 0 {
		out = append(out, p.text("%s %d UDP datagrams were held back: this upstream carries no UDP", p.yellow("!"), st.UDP.Blocked))
	}
	return out
}

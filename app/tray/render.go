package tray

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// Model is all that the icon depends on. The zero Model is the moment before
// the service has been reached.
type Model struct {
	Status    *api.Status // nil: the service does not answer
	Upstreams api.Upstreams
	ReadOnly  string // why we may look, but not steer; "" if we may
	Away      bool   // the service was tried and did not answer
	Gone      string // why, and what to do; "" if that is not known
	Problem   string // why the last click led to nothing
}

// see takes a new status. A change of state outdates the last problem.
func (m *Model) see(st api.Status, readOnly string) {
	if m.Status == nil || m.Status.State != st.State {
		m.Problem = ""
	}
	m.Status, m.ReadOnly, m.Away, m.Gone = &st, readOnly, false, ""
}

// View is what the desktop shows.
type View struct {
	Icon    string // a name of assets.Icon
	Tooltip string // 63 characters at most
	Items   []Item // always the same ones, in the same order; some Hidden
}

// Item is one line of the menu.
type Item struct {
	ID        string
	Label     string
	Separator bool // a line between groups, and nothing else
	Disabled  bool
	Hidden    bool
	Checkable bool
	Checked   bool
	Items     []Item // of a submenu
}

// IDs of the items that can be clicked; idUpstream is followed by a name.
const (
	idToggle   = "toggle"
	idQuit     = "quit"
	idUpstream = "upstream:"
)

const (
	maxTooltip = 63 // characters; what the oldest Windows takes
	maxLabel   = 60 // characters, so that the menu stays narrow
	maxName    = 28 // characters of an upstream's name
)

// render says what the desktop shows of m.
func render(m Model) View {
	icon, headline, note := headlineOf(m)
	v := View{Icon: icon, Tooltip: clip("AtlanticProxy: "+headline, maxTooltip)}
	hint := m.Problem
	if hint == "" && note != "" && m.Status != nil {
		hint = m.Status.Hint
	}
	if m.ReadOnly != "" {
		hint = m.ReadOnly
	}
	v.Items = []Item{
		{ID: "state", Label: clip(upperFirst(headline), maxLabel), Disabled: true},
		{ID: "traffic", Label: traffic(m), Disabled: true, Hidden: traffic(m) == ""},
		{ID: "note", Label: clip(note, maxLabel), Disabled: true, Hidden: note == ""},
		{ID: "hint", Label: clip(hint, maxLabel), Disabled: true, Hidden: hint == ""},
		{Separator: true},
		toggle(m),
		upstreams(m),
		{Separator: true},
		{ID: idQuit, Label: quitLabel(m)},
	}
	return v
}

// headlineOf is the icon, the state in a few words, and what is wrong.
func headlineOf(m Model) (icon, headline, note string) {
	if m.Status == nil {
		if !m.Away {
			return "gone", "looking for the service", ""
		}
		return "gone", "service not running", m.Gone
	}
	st := m.Status
	name := clip(st.Upstream.Name, maxName)
	switch st.State {
	case api.On:
		return "on", "on · " + name + latency(*st), ""
	case api.Starting:
		return "connecting", "connecting · " + name, ""
	case api.Stopping:
		return "connecting", "disconnecting", ""
	case api.Blocked:
		icon = "off" // what it looks like to apps, if nothing is held back
		if st.Protect.Blocking {
			icon = "blocked"
		}
		return icon, strings.TrimSuffix("blocked · "+st.Protect.Effect, " · "), st.Cause
	}
	return "off", strings.TrimSuffix("off · "+st.Protect.Effect, " · "), st.Cause
}

// latency is the live round trip: to the upstream if it is known, else to the
// first byte of a target.
func latency(st api.Status) string {
	ms := st.Upstream.RTTms
	if ms <= 0 {
		ms = st.Latency.FirstByte.P50
	}
	switch {
	case ms <= 0:
		return ""
	case ms < 1:
		return " · <1 ms"
	}
	return fmt.Sprintf(" · %.0f ms", ms)
}

func traffic(m Model) string {
	if m.Status == nil || m.Status.State == api.Off && m.Status.Flows.Total == 0 {
		return ""
	}
	b := m.Status.Bytes
	return fmt.Sprintf("↓ %s   ↑ %s   %d open", size(b.Down+b.DirectDown), size(b.Up+b.DirectUp), m.Status.Flows.Open)
}

// toggle is the switch.
func toggle(m Model) Item {
	it := Item{ID: idToggle, Label: "Turn on", Disabled: m.Status == nil || m.ReadOnly != ""}
	if m.Status == nil {
		return it
	}
	switch m.Status.State {
	case api.On, api.Blocked:
		it.Label = "Turn off"
	case api.Starting:
		it.Label = "Cancel"
	case api.Stopping:
		it.Disabled = true
	}
	return it
}

// wantOn is what the switch asks for in a state.
func wantOn(s api.State) bool { return s == api.Off || s == api.Stopping }

// upstreams is the submenu to choose one.
func upstreams(m Model) Item {
	it := Item{ID: "upstreams", Label: "Upstream", Disabled: m.Status == nil || m.ReadOnly != "" || len(m.Upstreams.Upstreams) == 0}
	if m.Status != nil && m.Status.Upstream.Name != "" {
		it.Label = "Upstream: " + clip(m.Status.Upstream.Name, maxName)
	}
	choices := []Item{{ID: idUpstream + "auto", Label: "Automatic", Checked: m.Upstreams.Choice == "auto"}}
	for _, u := range m.Upstreams.Upstreams {
		label := clip(u.Name, maxName)
		if u.Scheme != "direct" && u.RTTms > 0 {
			label += fmt.Sprintf("   %.0f ms", u.RTTms)
		}
		if u.Failures > 0 {
			label += "   (failing)"
		}
		choices = append(choices, Item{ID: idUpstream + u.Name, Label: label, Checked: u.Name == m.Upstreams.Choice})
	}
	for i := range choices {
		choices[i].Checkable = true
	}
	it.Items = choices
	return it
}

// quitLabel says that the icon's end is not the protection's end.
func quitLabel(m Model) string {
	if m.Status != nil && (m.Status.State == api.On || m.Status.State == api.Blocked) {
		return "Quit (the service stays on)"
	}
	return "Quit"
}

// goneText says why the service cannot be reached.
func goneText(err error) string {
	switch {
	case errors.Is(err, client.ErrAbsent):
		return "start it: sudo atlantic service start"
	case errors.Is(err, io.EOF): // it has just ended; the next try will tell more
		return ""
	}
	return problem(err)
}

// problem is an error in one line for a menu.
func problem(err error) string {
	refused := (*api.Error)(nil)
	switch {
	case err == nil:
		return ""
	case errors.As(err, &refused):
		return refused.Message
	}
	return err.Error()
}

// clip bounds text that others wrote, and takes out what is not text.
func clip(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

func upperFirst(s string) string {
	r := []rune(s)
	if len(r) > 0 {
		r[0] = unicode.ToUpper(r[0])
	}
	return string(r)
}

// size writes bytes so that the width changes little: 999 B, 1.5 MB, 21 GB.
func size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), -1
	for v >= 999.5 && unit < len(units)-1 {
		v, unit = v/1000, unit+1
	}
	if v < 9.95 {
		return fmt.Sprintf("%.1f %cB", v, units[unit])
	}
	return fmt.Sprintf("%.0f %cB", v, units[unit])
}

package tray

import (
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/assets"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func on(name string, ms float64) *api.Status {
	return &api.Status{State: api.On, Upstream: api.Upstream{Name: name, Scheme: "socks5", RTTms: ms},
		Bytes: api.Bytes{Up: 1_200_000, Down: 34_000_000, DirectDown: 400_000}, Flows: api.Flows{Open: 12, Total: 99}}
}

// find returns the visible item with that ID.
func find(v View, id string) (Item, bool) {
	for _, it := range v.Items {
		if it.ID == id && !it.Hidden {
			return it, true
		}
	}
	return Item{}, false
}

func TestRender(t *testing.T) {
	ups := api.Upstreams{Choice: "paris", Upstreams: []api.Upstream{{Name: "direct", Scheme: "direct"}, {Name: "paris", Scheme: "socks5", RTTms: 23}}}
	for _, tc := range []struct {
		name                 string
		m                    Model
		icon, tooltip, state string
		traffic, note, hint  string
		toggle, quit         string
		toggleOff            bool
	}{
		{"start", Model{}, "gone", "AtlanticProxy: looking for the service", "Looking for the service", "", "", "", "Turn on", "Quit", true},
		{"gone", Model{Away: true, Gone: "start it"}, "gone", "AtlanticProxy: service not running", "Service not running", "", "start it", "", "Turn on", "Quit", true},
		{"off", Model{Status: &api.Status{State: api.Off, Protect: api.Protect{Effect: "traffic leaves directly"}}}, "off", "AtlanticProxy: off · traffic leaves directly", "Off · traffic leaves directly", "", "", "", "Turn on", "Quit", false},
		{"failed", Model{Status: &api.Status{State: api.Off, Protect: api.Protect{Effect: "traffic leaves directly"}, Cause: "it refused", Hint: "is it up?"}}, "off", "AtlanticProxy: off · traffic leaves directly",
			"Off · traffic leaves directly", "", "it refused", "is it up?", "Turn on", "Quit", false},
		{"starting", Model{Status: &api.Status{State: api.Starting, Upstream: api.Upstream{Name: "paris"}}}, "connecting", "AtlanticProxy: connecting · paris",
			"Connecting · paris", "↓ 0 B   ↑ 0 B   0 open", "", "", "Cancel", "Quit", false},
		{"on", Model{Status: on("paris", 23.4), Upstreams: ups}, "on", "AtlanticProxy: on · paris · 23 ms", "On · paris · 23 ms",
			"↓ 34 MB   ↑ 1.2 MB   12 open", "", "", "Turn off", "Quit (the service stays on)", false},
		{"problem", Model{Status: on("paris", 0.4), Problem: "no such upstream"}, "on", "AtlanticProxy: on · paris · <1 ms", "On · paris · <1 ms",
			"↓ 34 MB   ↑ 1.2 MB   12 open", "", "no such upstream", "Turn off", "Quit (the service stays on)", false},
		{"stopping", Model{Status: &api.Status{State: api.Stopping}}, "connecting", "AtlanticProxy: disconnecting", "Disconnecting", "↓ 0 B   ↑ 0 B   0 open", "", "", "Turn on", "Quit", true},
		{"blocked in vain", Model{Status: &api.Status{State: api.Blocked, Protect: api.Protect{Effect: "no protection, traffic leaves directly"}, Cause: "port taken"}}, "off",
			"AtlanticProxy: blocked · no protection, traffic leaves directly",
			"Blocked · no protection, traffic leaves directly", "↓ 0 B   ↑ 0 B   0 open", "port taken", "", "Turn off", "Quit (the service stays on)", false},
		{"blocked", Model{Status: &api.Status{State: api.Blocked, Protect: api.Protect{Blocking: true, Effect: "traffic is held back"}, Cause: "wrong password", Hint: "check it"}}, "blocked", "AtlanticProxy: blocked · traffic is held back",
			"Blocked · traffic is held back", "↓ 0 B   ↑ 0 B   0 open", "wrong password", "check it", "Turn off", "Quit (the service stays on)", false},
		{"read only", Model{Status: on("paris", 0), ReadOnly: "To steer it, join the group atlantic"}, "on", "AtlanticProxy: on · paris", "On · paris", "↓ 34 MB   ↑ 1.2 MB   12 open", "",
			"To steer it, join the group atlantic", "Turn off", "Quit (the service stays on)", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := render(tc.m)
			if v.Icon != tc.icon || v.Tooltip != tc.tooltip {
				t.Errorf("icon %q, tooltip %q", v.Icon, v.Tooltip)
			}
			for id, want := range map[string]string{"state": tc.state, "traffic": tc.traffic, "note": tc.note, "hint": tc.hint, idToggle: tc.toggle, idQuit: tc.quit} {
				if it, ok := find(v, id); it.Label != want || ok != (want != "") {
					t.Errorf("%s: %q, want %q", id, it.Label, want)
				}
			}
			if it, _ := find(v, idToggle); it.Disabled != tc.toggleOff {
				t.Errorf("toggle disabled: %v", it.Disabled)
			}
			if _, err := assets.Icon(v.Icon, "color", 48); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRenderUpstreams(t *testing.T) {
	m := Model{Status: on("paris", 23), Upstreams: api.Upstreams{Choice: "paris",
		Upstreams: []api.Upstream{{Name: "direct", Scheme: "direct", RTTms: 1}, {Name: "paris", RTTms: 23}, {Name: "rome", Failures: 3}}}}
	sub, _ := find(render(m), "upstreams")
	got := ""
	for _, it := range sub.Items {
		mark := " "
		if it.Checked {
			mark = "*"
		}
		got += mark + it.Label + "=" + it.ID + "\n"
	}
	if want := " Automatic=upstream:auto\n direct=upstream:direct\n*paris   23 ms=upstream:paris\n rome   (failing)=upstream:rome\n"; got != want || sub.Label != "Upstream: paris" {
		t.Errorf("%q:\n%s", sub.Label, got)
	}
}

// TestRenderStable: the ui relies on the same items in the same order.
func TestRenderStable(t *testing.T) {
	ids := func(m Model) (s string) {
		for _, it := range render(m).Items {
			s += it.ID + " "
		}
		return s
	}
	if a, b := ids(Model{}), ids(Model{Status: on("x", 1), Problem: "p"}); a != b {
		t.Errorf("%s\n%s", a, b)
	}
}

func TestGoneText(t *testing.T) {
	for err, want := range map[error]string{client.ErrAbsent: "start it: sudo atlantic service start", io.EOF: "",
		&api.Error{Message: "m", Hint: "h"}: "m", errors.New("x"): "x"} {
		if got := goneText(err); got != want {
			t.Errorf("%v: %q", err, got)
		}
	}
}

// FuzzRender: whatever names and causes the service reports, the texts stay
// short, and hold nothing that is not text.
func FuzzRender(f *testing.F) {
	f.Add("paris", "cause", "hint", 12.0, uint64(1000))
	f.Add(strings.Repeat("é", 300), "a\nb\x1b[31m", "\u202e\xff", -1.0, ^uint64(0))
	f.Fuzz(func(t *testing.T, name, cause, hint string, ms float64, n uint64) {
		for _, s := range []api.State{api.Off, api.Starting, api.On, api.Stopping, api.Blocked, "?"} {
			st := &api.Status{State: s, Cause: cause, Hint: hint, Upstream: api.Upstream{Name: name, RTTms: ms}, Bytes: api.Bytes{Up: n}}
			v := render(Model{Status: st, Problem: cause, Upstreams: api.Upstreams{Choice: name, Upstreams: []api.Upstream{{Name: name, RTTms: ms}}}})
			if utf8.RuneCountInString(v.Tooltip) > maxTooltip {
				t.Errorf("tooltip %q", v.Tooltip)
			}
			var check func([]Item)
			check = func(items []Item) {
				for _, it := range items {
					if n := utf8.RuneCountInString(it.Label); n > 80 && ms < 1e9 || !utf8.ValidString(it.Label) || strings.ContainsAny(it.Label, "\n\x1b\u202e") {
						t.Errorf("label %q", it.Label)
					}
					check(it.Items)
				}
			}
			check(v.Items)
		}
	})
}

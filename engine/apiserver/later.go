package apiserver

import (
	"slices"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// What the API is going to have. Whoever asks for it already is told that it is
// not in this version, and not that there is no such thing.

// laterCall tells whether a later version answers on path.
func laterCall(path string) bool {
	return slices.Contains([]string{"/v1/health", "/v1/quality", "/v1/speedtest"}, path)
}

// prefsBody is api.Prefs with the fields that a later version takes; null
// changes nothing, as in api.Prefs.
type prefsBody struct {
	api.Prefs
	KillSwitch any `json:"kill_switch"`
	LAN        any `json:"lan"`
	UDP        any `json:"udp"`
	Filter     any `json:"filter"`
}

// refuseLater refuses those fields, with what does the same today.
func (p prefsBody) refuseLater() error {
	inFile := func(key string) string {
		return "set protect." + key + " in the configuration file: sudo atlantic config set protect." + key + " VALUE"
	}
	switch {
	case p.KillSwitch != nil:
		return notYet("kill_switch in the preferences", inFile("kill_switch"))
	case p.LAN != nil:
		return notYet("lan in the preferences", inFile("lan"))
	case p.UDP != nil:
		return notYet("udp in the preferences", inFile("udp"))
	case p.Filter != nil:
		return notYet("filter", `block hosts by a [[rule]] with via = "block" in the configuration file`)
	}
	return nil
}

func notYet(what, hint string) error {
	return &api.Error{Code: api.ErrUnsupported, Message: what + " is not in this version", Hint: hint}
}

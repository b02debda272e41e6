package engine

import (
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

var allStates = []api.State{api.Off, api.Starting, api.On, api.Stopping, api.Blocked}

// every calls f with each machine and input that can be.
func every(f func(m machine, in input)) {
	for _, s := range allStates {
		for bits := range 8 {
			m := machine{state: s, want: bits&1 != 0, proven: bits&2 != 0, locked: bits&4 != 0}
			for in := inUp; in < inputs; in++ {
				f(m, in)
			}
		}
	}
}

// The promises that hold over every pair of state and input.
func TestNextKeepsItsPromises(t *testing.T) {
	every(func(m machine, in input) {
		n, do := next(m, in)
		bad := func(why string) { t.Errorf("%+v on %d: %s: %+v %+v", m, in, why, n, do) }
		if do.let && n.state != api.On {
			bad("carries flows although it is not On")
		}
		if n.state == api.Blocked && m.state != api.Blocked && !do.hold {
			bad("enters Blocked without holding traffic")
		}
		if m.state == api.Blocked && n.state == api.Off {
			bad("opens without a stop")
		}
		if n.state == api.Off && m.state != api.Off && m.state != api.Stopping {
			bad("is Off without having restored the machine")
		}
		if n.state == api.Blocked && m.state == api.Starting && !m.proven {
			bad("blocks before the first success")
		}
		if n.state == api.Stopping && m.state != api.Stopping && !do.stop {
			bad("is Stopping without stopping")
		}
		if n.state == api.Starting && m.state != api.Starting && !do.start {
			bad("is Starting without starting")
		}
		if m.locked && in != inUp && in != inDown && n.state == api.On && m.state != api.On {
			bad("opens although the intent could not be read")
		}
		if in == inDown && m.state != api.Off && n.state != api.Stopping {
			bad("does not obey down")
		}
		if do.start && do.stop {
			bad("starts and stops at once")
		}
		if in == inDown && (n.want || !do.save) || in == inUp && (!n.want || !do.save) {
			bad("does not keep what the user wants")
		}
	})
}

// The ways through the states that matter, step by step.
func TestNextWays(t *testing.T) {
	type step struct {
		in   input
		want api.State
	}
	for name, steps := range map[string][]step{
		"up and down":              {{inUp, api.Starting}, {inStarted, api.On}, {inDown, api.Stopping}, {inStopped, api.Off}},
		"first try fails":          {{inUp, api.Starting}, {inFailed, api.Stopping}, {inStopped, api.Off}},
		"upstream dies and heals":  {{inUp, api.Starting}, {inStarted, api.On}, {inLost, api.Blocked}, {inLost, api.Blocked}, {inRecovered, api.On}},
		"tun dies and comes back":  {{inUp, api.Starting}, {inStarted, api.On}, {inFailed, api.Blocked}, {inFailed, api.Blocked}, {inStarted, api.On}},
		"down while starting":      {{inUp, api.Starting}, {inDown, api.Stopping}, {inStopped, api.Off}},
		"up while stopping":        {{inUp, api.Starting}, {inStarted, api.On}, {inDown, api.Stopping}, {inUp, api.Stopping}, {inStopped, api.Starting}},
		"down while blocked":       {{inUp, api.Starting}, {inStarted, api.On}, {inLost, api.Blocked}, {inDown, api.Stopping}, {inStopped, api.Off}},
		"late answers are ignored": {{inStarted, api.Off}, {inRecovered, api.Off}, {inLost, api.Off}, {inStopped, api.Off}, {inFailed, api.Off}},
		"unreadable intent":        {{inUnreadable, api.Blocked}, {inStarted, api.Blocked}, {inRecovered, api.Blocked}, {inUp, api.Blocked}, {inStarted, api.On}},
		"unreadable, then down":    {{inUnreadable, api.Blocked}, {inDown, api.Stopping}, {inStopped, api.Off}},
	} {
		t.Run(name, func(t *testing.T) {
			m := machine{state: api.Off}
			for i, s := range steps {
				m, _ = next(m, s.in)
				if m.state != s.want {
					t.Fatalf("step %d, input %d: %s, want %s", i, s.in, m.state, s.want)
				}
			}
		})
	}
}

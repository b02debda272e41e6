package engine

import (
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

var allStates = []api.State{api.Off, api.Starting, api.On, api.Stopping, api.Blocked}

// every calls f with each machine and input that can be.
func every(f func(m machine, in input)) {
	for _, s := range allStates {
		for bits := range 32 {
			m := machine{state: s, want: bits&1 != 0, proven: bits&2 != 0, locked: bits&4 != 0, ending: bits&8 != 0, alone: bits&16 != 0}
			if m.ending && m.state != api.Stopping {
				continue // a service that ends is Stopping until it is Off, and over
			}
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
		has := func(f effects) bool { return do&f != 0 }
		if has(let) && n.state != api.On && in != inStopped {
			bad("carries flows although it is not On")
		}
		if n.state == api.Blocked && m.state != api.Blocked && !has(hold) {
			bad("enters Blocked without holding traffic")
		}
		if n.state == api.Starting && n.proven && m.state == api.Off && !has(hold) {
			bad("starts with a proven intent and lets traffic past")
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
		if n.state == api.Stopping && m.state != api.Stopping && !has(stop) {
			bad("is Stopping without stopping")
		}
		if n.state == api.Starting && m.state != api.Starting && !has(start) {
			bad("is Starting without starting")
		}
		if m.locked && in != inUp && in != inDown && n.state == api.On && m.state != api.On {
			bad("opens although it is in doubt what is wanted")
		}
		if in == inDown && n.state != api.Stopping {
			bad("does not obey down")
		}
		if n.state == api.Off && !n.ending && n.want && m.state == api.Stopping && !has(retry) {
			bad("is Off, wanted On, and does not try again")
		}
		if has(start) && has(stop) {
			bad("starts and stops at once")
		}
		if m.ending != (m.ending && n.ending) || m.ending && n.state != api.Stopping && !has(end) {
			bad("does not end")
		}
		if has(end) && n.state != api.Off {
			bad("ends without having restored the machine")
		}
		if !m.ending && (in == inDown && (n.want || !has(save)) || in == inUp && (!n.want || !has(save))) {
			bad("does not keep what the user wants")
		}
		if n.proven != m.proven && in != inDoubt && !has(save) {
			bad("does not keep what was proven")
		}
	})
}

// Effects are carried out in the order of their bits; these pairs depend on it.
func TestEffectsAreInOrder(t *testing.T) {
	for _, pair := range [][2]effects{
		{hold, start}, // nothing passes before the pipeline is up
		{cancel, stop},
		{forget, save}, // what is kept is what is true
		{save, stop},   // the intent is under way before the machine is restored
		{let, start},   // a start that follows a stop begins unheld, and holds by itself
		{let, save},
		{stop, end},
	} {
		if pair[0] >= pair[1] {
			t.Errorf("effect %b comes before %b", pair[1], pair[0])
		}
	}
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
		"unreadable intent":        {{inDoubt, api.Blocked}, {inStarted, api.Blocked}, {inRecovered, api.Blocked}, {inUp, api.Blocked}, {inStarted, api.On}},
		"down while off":           {{inDown, api.Stopping}, {inStopped, api.Off}},
		"end while off":            {{inEnd, api.Stopping}, {inUp, api.Stopping}, {inStopped, api.Off}},
		"end while starting":       {{inUp, api.Starting}, {inEnd, api.Stopping}, {inDown, api.Stopping}, {inStopped, api.Off}},
		"end while stopping":       {{inUp, api.Starting}, {inDown, api.Stopping}, {inUp, api.Stopping}, {inEnd, api.Stopping}, {inStopped, api.Off}},
		"unreadable, then down":    {{inDoubt, api.Blocked}, {inDown, api.Stopping}, {inStopped, api.Off}},
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

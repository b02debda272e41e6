package engine

import "github.com/atlanticproxy/atlanticproxy/engine/api"

// machine is the engine's state. It is a value and next is pure, so every pair
// of state and input is tested without a network (machine_test.go).
//
//	         up                 started
//	┌─────┐ ────► ┌──────────┐ ────────► ┌────┐
//	│ Off │ ◄──── │ Starting │           │ On │
//	└─────┘ never └──────────┘           └────┘
//	   ▲    worked    │ failed, but       │  ▲
//	   │    before    │ it had worked     │  │ recovered
//	   │              ▼                   ▼  │
//	   │          ┌──────────────────────────┐
//	   │          │         Blocked          │  traffic is held, never let past
//	   │          └──────────────────────────┘
//	   │ stopped      │ down (from Starting, On, Blocked)
//	┌──────────┐ ◄────┘
//	│ Stopping │
//	└──────────┘
type machine struct {
	state api.State
	// want is what the user asked for last; it outlives a stop in progress.
	want bool
	// proven: this machine has been On with this intent before. A failure
	// blocks only then: nobody's first try may cost them the network.
	proven bool
	// locked: the intent could not be read, so nobody but the user may open.
	locked bool
}

// input is what happens to the machine.
type input uint8

const (
	inUp         input = iota + 1 // the user (or the kept intent) wants On
	inDown                        // the user wants Off
	inStarted                     // the pipeline runs and the upstream has answered
	inFailed                      // the start failed, or a running pipeline broke
	inLost                        // the upstream in use does not answer any more
	inRecovered                   // it answers again
	inStopped                     // the machine is restored
	inUnreadable                  // the kept intent cannot be read
	inputs                        // how many there are, plus one
)

// effects are what the engine does on a transition, in the order of the fields.
type effects struct {
	cancel bool // abandon a start in progress
	hold   bool // refuse every flow from now on
	let    bool // carry flows again
	start  bool // bring the pipeline up (restoring first what is left of an old one)
	retry  bool // look again for a cure, with a pause
	stop   bool // take the pipeline down and restore the machine
	forget bool // the intent goes back to off
	save   bool // keep the intent
}

// next tells where in leads from m, and what is to be done. Inputs that mean
// nothing in a state (late answers of abandoned work) leave it as it is.
func next(m machine, in input) (machine, effects) {
	switch in {
	case inUp:
		m.want, m.locked = true, false
		switch m.state {
		case api.Off:
			m.state = api.Starting
			return m, effects{start: true, save: true}
		case api.Blocked:
			return m, effects{retry: true, save: true}
		}
		return m, effects{save: true}

	case inDown:
		m.want, m.proven, m.locked = false, false, false
		switch m.state {
		case api.Starting, api.On, api.Blocked:
			m.state = api.Stopping
			return m, effects{cancel: true, stop: true, save: true}
		}
		return m, effects{save: true}

	case inUnreadable:
		if m.state == api.Off {
			m.state, m.want, m.proven, m.locked = api.Blocked, true, true, true
			return m, effects{hold: true, start: true}
		}

	case inStarted:
		switch {
		case m.locked:
			return m, effects{}
		case m.state == api.Starting, m.state == api.Blocked:
			first := !m.proven
			m.state, m.proven = api.On, true
			return m, effects{let: true, save: first}
		}

	case inFailed:
		switch {
		case m.state == api.Starting && !m.proven:
			m.state, m.want = api.Stopping, false
			return m, effects{stop: true, forget: true, save: true}
		case m.state == api.Starting, m.state == api.On:
			m.state = api.Blocked
			return m, effects{hold: true, retry: true}
		case m.state == api.Blocked:
			return m, effects{hold: true, retry: true}
		}

	case inLost:
		switch m.state {
		case api.On:
			m.state = api.Blocked
			return m, effects{hold: true, retry: true}
		case api.Blocked:
			return m, effects{retry: true}
		}

	case inRecovered:
		if m.state == api.Blocked && !m.locked {
			m.state = api.On
			return m, effects{let: true}
		}

	case inStopped:
		if m.state == api.Stopping {
			if m.want { // asked for again while stopping
				m.state = api.Starting
				return m, effects{start: true}
			}
			m.state = api.Off
		}
	}
	return m, effects{}
}

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
//	   │          │         Blocked          │  nothing of ours lets traffic past
//	   │          └──────────────────────────┘
//	   │ stopped      │ down, end (from every state)
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
	// locked: what was kept leaves in doubt what the user wants, so nobody but
	// the user may open.
	locked bool
	// alone: the try under way is the kept intent's, or --up's: nobody waits for
	// what comes of it, so it is made again until it works.
	alone bool
	// ending: the service ends; nobody is obeyed any more.
	ending bool
}

// input is what happens to the machine.
type input uint8

const (
	inUp        input = iota + 1 // the user wants On
	inKept                       // the service starts, and is to be On as it was, or by --up
	inAgain                      // a try that failed before the first success is made again
	inDown                       // the user wants Off
	inStarted                    // the pipeline runs and the upstream has answered
	inFailed                     // the start failed, or a running pipeline broke
	inLost                       // the upstream in use does not answer any more
	inRecovered                  // it answers again
	inStopped                    // the machine is restored
	inDoubt                      // what was kept cannot be carried out as it was meant
	inEnd                        // the service is to end
	inputs                       // how many there are, plus one
)

// effects are what the engine does on a transition: a set, carried out in the
// order in which they stand here.
//
//	hold comes before start and let after stop: nothing passes in between
//	forget comes before save: what is kept is what is true then
//	end comes last: whoever waits for it finds everything done
type effects uint16

const (
	cancel effects = 1 << iota // abandon the looks at upstreams
	hold                       // refuse every flow from now on
	let                        // carry flows again
	forget                     // the try has failed: what came with it is taken back
	save                       // keep the intent
	stop                       // take the pipeline down and restore the machine
	start                      // bring the pipeline up (restoring first what is left of an old one)
	retry                      // look for a cure, or try again, after a pause
	end                        // Run is over
	noMore                     // how many there are, as a bit
)

// next tells where in leads from m, and what is to be done. Inputs that mean
// nothing in a state (late answers of abandoned work) leave it as it is.
func next(m machine, in input) (machine, effects) {
	switch in {
	case inUp, inDown, inKept:
		if m.ending {
			return m, 0
		}
		m.alone = in == inKept
		if in == inDown {
			return down(m)
		}
		return up(m)

	case inAgain:
		if m.state == api.Off && m.want && !m.proven {
			m.state = api.Starting
			return m, start
		}

	case inEnd:
		m.ending = true
		if m.state != api.Stopping {
			m.state = api.Stopping
			return m, cancel | stop
		}

	case inDoubt:
		if m.state == api.Off {
			m.state, m.want, m.proven, m.locked = api.Blocked, true, true, true
			return m, hold | start
		}

	case inStarted:
		switch {
		case m.locked:
			return m, 0
		case m.state == api.Starting, m.state == api.Blocked:
			m.state, m.proven = api.On, true
			return m, let | save
		}

	case inFailed:
		switch {
		case m.state == api.Starting && !m.proven && m.alone:
			m.state = api.Stopping
			return m, stop
		case m.state == api.Starting && !m.proven:
			m.state, m.want = api.Stopping, false
			return m, forget | save | stop
		case m.state == api.Starting, m.state == api.On, m.state == api.Blocked:
			m.state = api.Blocked
			return m, hold | retry
		}

	case inLost:
		switch m.state {
		case api.On:
			m.state = api.Blocked
			return m, hold | retry
		case api.Blocked:
			return m, retry
		}

	case inRecovered:
		if m.state == api.Blocked && !m.locked {
			m.state = api.On
			return m, let | save
		}

	case inStopped:
		return stopped(m)
	}
	return m, 0
}

func up(m machine) (machine, effects) {
	m.want, m.locked = true, false
	switch {
	case m.state == api.Off && m.proven:
		m.state = api.Starting
		return m, hold | save | start
	case m.state == api.Off:
		m.state = api.Starting
		return m, save | start
	case m.state == api.Blocked:
		return m, save | retry
	}
	return m, save
}

// down restores the machine even from Off, as the end does: something may be
// left that could not be undone before.
func down(m machine) (machine, effects) {
	m.want, m.proven, m.locked = false, false, false
	if m.state == api.Stopping {
		return m, save
	}
	m.state = api.Stopping
	return m, cancel | save | stop
}

func stopped(m machine) (machine, effects) {
	switch {
	case m.state != api.Stopping:
		return m, 0
	case m.ending:
		m.state = api.Off
		return m, let | end
	case m.want && m.alone:
		m.state = api.Off
		return m, let | retry
	case m.want: // asked for again while stopping
		m.state = api.Starting
		return m, let | start
	}
	m.state = api.Off
	return m, let
}

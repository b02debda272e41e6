package h2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/net/http2"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	sampleEvery  = 20 * time.Millisecond // between PINGs that measure, at first
	sampleRarely = time.Second           // and while they bring nothing new
	queueing     = 30 * time.Millisecond // a round trip longer by that, and three times the shortest, is congested
	congestedFor = time.Second           // after a sign of it
	meterTime    = time.Second           // over which Load.Rate is averaged

	askWaiting  = time.Second      // of silence before a PING, if something of the peer's is due
	askActive   = 2 * time.Second  // if bytes moved in the last activeFor
	askOpen     = 15 * time.Second // if there are streams
	askIdle     = 30 * time.Second // if there were some in the last keptFor
	activeFor   = 10 * time.Second
	keptFor     = 5 * time.Minute
	suspectTime = flow.SessionSuspectAfter
	deadTime    = flow.SessionDeadAfter
	urgentTime  = 3 * time.Second // the same after Retire
)

// path is what PINGs have told about the way to the peer and back.
//
// A stream's receive window follows the bandwidth-delay product: PING leaves
// as bytes come in, and if about a whole window has come in when its answer
// does, the window was the limit and doubles. gRPC sizes windows like that
// (grpc/proposal A30 has it as "BDP estimation").
type path struct {
	target   int64         // bytes; the window that streams are to have
	sent     time.Time     // when the PING left that has no answer; zero if there is none
	number   uint64        // that it carries
	sample   int64         // bytes in since
	rtt      time.Duration // of the last
	least    time.Duration // of all; 0 before the first
	measured time.Time     // when rtt was
	best     float64       // bytes per second; the most that was seen
	every    time.Duration // between PINGs that measure
	next     time.Time     // not before
	suspect  bool          // no answer for suspectTime
	urgent   bool          // by Retire
}

// sampleLocked counts n bytes in, and has the round trip measured now and then.
func (s *Session) sampleLocked(n int64) {
	p := &s.path
	p.sample += n
	if !p.sent.IsZero() {
		return
	}
	if now := time.Now(); now.After(p.next) {
		if now.Sub(p.next) > activeFor {
			p.every = sampleEvery
		}
		s.pingLocked()
	}
}

func (s *Session) pingLocked() {
	p := &s.path
	p.number++
	p.sent = time.Now()
	p.sample = 0
	c := control{kind: http2.FramePing}
	binary.BigEndian.PutUint64(c.data[:], p.number)
	s.enqueueLocked(c)
}

// pongLocked takes the answer to a PING.
func (s *Session) pongLocked(data [8]byte) {
	p := &s.path
	if p.sent.IsZero() || binary.BigEndian.Uint64(data[:]) != p.number {
		return
	}
	p.measured = time.Now()
	p.rtt = max(p.measured.Sub(p.sent), time.Microsecond)
	p.sent = time.Time{}
	p.suspect, p.urgent = false, false
	if p.least == 0 || p.rtt < p.least {
		p.least = p.rtt
	}
	p.every = min(max(2*p.every, sampleEvery), sampleRarely)
	rate := float64(p.sample) / p.rtt.Seconds()
	if rate > p.best && 3*p.sample >= 2*p.target {
		p.best = rate
		p.target = min(2*p.sample, maxWindow)
		p.every = sampleEvery
	}
	p.next = p.measured.Add(p.every)
}

// Load is how busy a session is.
type Load struct {
	Free      int           // places for streams, as far as is known
	Streams   int           // open or being opened
	Rate      int64         // bytes per second lately, both ways
	RTT       time.Duration // the shortest there was; 0 if not known
	Quiet     time.Duration // since the peer was last heard
	Congested bool          // a new stream would have to wait behind others
}

// meter averages the rate.
type meter struct {
	at    time.Time
	moved int64
	rate  float64
}

// Load is how busy the session is now.
func (s *Session) Load() Load {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if dt := now.Sub(s.meter.at); dt > meterTime/10 {
		moved := s.moved.Load()
		rate := float64(moved-s.meter.moved) / dt.Seconds()
		s.meter.rate += (rate - s.meter.rate) * min(1, float64(dt)/float64(meterTime))
		s.meter.at, s.meter.moved = now, moved
	}
	blocked, p := s.blocked.Load(), &s.path
	return Load{
		Free:    s.freeLocked(),
		Streams: s.openLocked() + s.reserved,
		Rate:    int64(s.meter.rate),
		RTT:     p.least,
		Quiet:   now.Sub(s.born) - time.Duration(s.lastRead.Load()),
		Congested: blocked != 0 && now.Sub(s.born)-time.Duration(blocked) < congestedFor ||
			now.Sub(p.measured) < congestedFor && p.rtt > 3*p.least+queueing ||
			!p.sent.IsZero() && p.least > 0 && now.Sub(p.sent) > 3*p.least+queueing,
	}
}

// watch finds out that the peer is out of reach, and ends what has drained.
func (s *Session) watch() {
	defer s.wg.Done()
	timer := time.NewTimer(settingsTimeout)
	defer timer.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-s.rouse:
		case <-timer.C:
		}
		again, err := s.look()
		if err != nil {
			s.end(err)
			return
		}
		timer.Reset(again)
	}
}

// look does what is due and says when to look again. An error is why the
// session is to end.
func (s *Session) look() (again time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, p := time.Now(), &s.path
	quiet := now.Sub(s.born) - time.Duration(s.lastRead.Load())
	open := s.openLocked() + s.reserved
	switch {
	case s.draining && open == 0:
		return 0, errClosed
	case !s.isReady && quiet >= settingsTimeout:
		return 0, errors.New("no SETTINGS from the proxy")
	case !s.isReady:
		return settingsTimeout - quiet, nil
	case !p.sent.IsZero():
		return s.awaitPongLocked(min(quiet, now.Sub(p.sent)))
	}
	ask := s.askAfterLocked(open)
	if ask == 0 {
		return keptFor, nil
	}
	if quiet >= ask {
		s.pingLocked()
		return suspectTime, nil
	}
	if ask = ask - quiet; open > 0 {
		ask = min(ask, askWaiting)
	}
	return ask, nil
}

// awaitPongLocked judges silence after a PING.
func (s *Session) awaitPongLocked(silent time.Duration) (again time.Duration, err error) {
	limit := deadTime
	if s.path.urgent {
		limit = urgentTime
	}
	switch {
	case silent >= limit:
		return 0, fmt.Errorf("the proxy has not answered PING for %v", silent.Round(time.Second))
	case silent < suspectTime:
		return suspectTime - silent, nil
	}
	s.path.suspect = true
	why := fmt.Errorf("%w: the proxy has not answered PING for %v", ErrUnprocessed, silent.Round(time.Second))
	for _, st := range s.opening {
		st.failLocked(why)
	}
	for _, st := range s.streams {
		if !st.answered {
			s.enqueueLocked(control{kind: http2.FrameRSTStream, id: st.id, n: uint32(http2.ErrCodeCancel)})
			st.failLocked(why)
			st.dropIfDoneLocked()
		}
	}
	return limit - silent, nil
}

// askAfterLocked is how long the peer may be silent before it is sent a PING;
// 0: for ever.
func (s *Session) askAfterLocked(open int) time.Duration {
	written := time.Duration(s.lastWrite.Load())
	used := max(written, time.Duration(s.lastData.Load()))
	switch {
	case open > s.answered, open > 0 && written > time.Duration(s.lastRead.Load()):
		return askWaiting
	case open > 0 && time.Since(s.born)-used < activeFor:
		return askActive
	case open > 0:
		return askOpen
	case used > 0 && time.Since(s.born)-used < keptFor:
		return askIdle
	}
	return 0
}

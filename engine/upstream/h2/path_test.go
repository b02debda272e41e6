package h2

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// quietPeer is a proxy in a bubble of synctest: it answers every CONNECT, and
// PINGs while it is alive.
type quietPeer struct {
	far  net.Conn
	fr   *http2.Framer
	wg   sync.WaitGroup
	mu   sync.Mutex
	dead bool          // guarded by mu; it reads but never says a word
	mute bool          // guarded by mu; it answers PINGs alone
	slow time.Duration // guarded by mu; before it answers a PING
	asks []time.Time   // guarded by mu; when PINGs came
}

// bubble makes a session with a quietPeer; both end with the test.
func bubble(t *testing.T) (*Session, *quietPeer) {
	near, far := net.Pipe()
	q := &quietPeer{far: far, fr: http2.NewFramer(far, far)}
	q.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	q.wg.Add(1)
	go q.run()
	s := New(near)
	t.Cleanup(func() { s.Close(); far.Close(); q.wg.Wait() })
	<-s.Ready()
	return s, q
}

func (q *quietPeer) run() {
	defer q.wg.Done()
	if _, err := io.ReadFull(q.far, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	p := &peer{c: q.far, Framer: q.fr}
	q.fr.WriteSettings()
	for {
		f, err := q.fr.ReadFrame()
		if err != nil {
			return
		}
		q.mu.Lock()
		ping, isPing := f.(*http2.PingFrame)
		if isPing {
			q.asks = append(q.asks, time.Now())
		}
		dead, mute, slow := q.dead, q.mute, q.slow
		q.mu.Unlock()
		if dead {
			continue
		}
		if isPing {
			data := ping.Data
			q.wg.Add(1)
			time.AfterFunc(slow, func() { // while frames go on being read
				defer q.wg.Done()
				q.mu.Lock()
				defer q.mu.Unlock()
				q.fr.WritePing(true, data)
			})
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok && !mute {
			q.mu.Lock()
			p.answer(h.StreamID, "200", false)
			q.mu.Unlock()
		}
	}
}

func (q *quietPeer) die() { q.mu.Lock(); q.dead = true; q.mu.Unlock() }

func (q *quietPeer) pings() int { q.mu.Lock(); defer q.mu.Unlock(); return len(q.asks) }

// tunnel opens a stream.
func tunnel(t *testing.T, s *Session) *Stream {
	t.Helper()
	s.Reserve()
	st, _, err := s.Connect(t.Context(), "x.example:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestDeadWhileWaiting: a request on a dead session fails soon, so that it can
// be made elsewhere; streams that are open have more time.
func TestDeadWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, q := bubble(t)
		st := tunnel(t, s)
		q.die()
		s.Reserve()
		begin := time.Now()
		_, _, err := s.Connect(t.Context(), "x.example:1", nil)
		if took := time.Since(begin); !errors.Is(err, ErrUnprocessed) || took > askWaiting+suspectTime+time.Second {
			t.Fatalf("%v after %v", err, took)
		}
		if s.Reserve() {
			t.Error("a session that does not answer takes streams")
		}
		select {
		case <-s.Done():
			t.Error("the open stream was given up already")
		default:
		}
		if _, err := st.Read(make([]byte, 1)); !errors.Is(err, errReset) {
			t.Error(err)
		}
		if took := time.Since(begin); took < deadTime || took > deadTime+askWaiting+time.Second {
			t.Errorf("the session ended after %v", took)
		}
	})
}

// TestSuspectRecovers: a peer that was only slow is used again.
func TestSuspectRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, q := bubble(t)
		st := tunnel(t, s)
		q.mu.Lock()
		q.slow = 5 * time.Second
		q.mu.Unlock()
		st.Write([]byte("x"))
		time.Sleep(askWaiting + suspectTime + 500*time.Millisecond)
		if s.Usable() {
			t.Fatal("no suspicion")
		}
		time.Sleep(5 * time.Second)
		if !s.Usable() {
			t.Fatal("still under suspicion")
		}
	})
}

func TestPingsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, q := bubble(t)
		time.Sleep(time.Hour)
		if n := q.pings(); n != 0 {
			t.Errorf("%d PINGs on a session that was never used", n)
		}
		st := tunnel(t, s)
		st.Close()
		before := q.pings()
		time.Sleep(keptFor)
		if n := q.pings() - before; n < 5 || n > int(keptFor/askIdle)+1 {
			t.Errorf("%d PINGs in %v after the last stream", n, keptFor)
		}
		before = q.pings()
		time.Sleep(time.Hour)
		if n := q.pings() - before; n > 1 {
			t.Errorf("%d PINGs in an idle hour", n)
		}
		tunnel(t, s)
		before = q.pings()
		time.Sleep(time.Hour)
		if n := q.pings() - before; n > int(time.Hour/askOpen)+10 {
			t.Errorf("%d PINGs in an hour of an idle stream", n)
		}
	})
}

// TestAbandonedForGood: a request that nobody waits for and that is never
// answered holds its place, and a retired session, for so long and no longer; it
// holds nothing of what other streams' windows are made of.
func TestAbandonedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, q := bubble(t)
		q.mu.Lock()
		q.mute = true
		q.mu.Unlock()
		s.Reserve()
		st, err := s.Open("x.example:1", nil)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it has left
		st.Abandon()
		s.mu.Lock()
		extra := s.extra
		s.mu.Unlock()
		if l := s.Load(); l.Streams != 1 || extra != 0 {
			t.Errorf("%+v, %d bytes of windows", l, extra)
		}
		s.Retire()
		begin := time.Now()
		<-s.Done()
		if took := time.Since(begin); took != abandonedTime {
			t.Errorf("the session ended after %v", took)
		}
	})
}

// TestAbandonedWithItsSession: nothing is left to wait for.
func TestAbandonedWithItsSession(t *testing.T) {
	s, p := session(t)
	s.Reserve()
	st, err := s.Open("x.example:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	next[*http2.MetaHeadersFrame](p)
	p.c.Close()
	<-s.Done()
	if st.Abandon(); st.abandoned { // nobody else has it now
		t.Error("a timer for the answer of a session that has ended")
	}
}

func TestRetire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := bubble(t)
		st := tunnel(t, s)
		s.Retire()
		if s.Reserve() {
			t.Error("a retired session takes streams")
		}
		time.Sleep(time.Minute)
		if _, err := st.Write([]byte("x")); err != nil {
			t.Errorf("the peer is there, and yet: %v", err)
		}
		st.Close()
		<-s.Done()

		s, q := bubble(t)
		st = tunnel(t, s)
		q.die()
		begin := time.Now()
		s.Retire()
		st.Read(make([]byte, 1))
		if took := time.Since(begin); took > urgentTime+time.Second {
			t.Errorf("a lost network is noticed after %v", took)
		}
	})
}

// TestWindowFollowsPath: on a path that carries more in a round trip than the
// window the window grows, up to a bound; on a short one it stays.
func TestWindowFollowsPath(t *testing.T) {
	for _, c := range []struct {
		rtt  time.Duration
		rate int64 // bytes a second
		want func(target int64) bool
	}{
		{time.Millisecond, 10 << 20, func(w int64) bool { return w == firstWindow }},
		{100 * time.Millisecond, 20 << 20, func(w int64) bool { return w >= 2<<20 && w <= 4<<20 }},
		{time.Second, 1 << 30, func(w int64) bool { return w == maxWindow }},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, q := bubble(t)
			q.mu.Lock()
			q.dead = true // the test answers
			q.mu.Unlock()
			for range 30 {
				s.mu.Lock()
				s.sampleLocked(0)
				for range 10 { // a window a round trip, if the path is that fast
					s.sampleLocked(min(s.path.target, int64(c.rtt.Seconds()*float64(c.rate))) / 10)
				}
				s.mu.Unlock()
				time.Sleep(c.rtt)
				s.mu.Lock()
				var data [8]byte
				data[7] = byte(s.path.number)
				s.pongLocked(data)
				s.mu.Unlock()
				time.Sleep(sampleRarely)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if !c.want(s.path.target) {
				t.Errorf("%v, %d MiB/s: a window of %d KiB", c.rtt, c.rate>>20, s.path.target>>10)
			}
		})
	}
}

// TestWindowGrowsWithReader: what the path can carry is granted to readers
// that empty their buffer now and then, also by bursts, and not to slow ones.
func TestWindowGrowsWithReader(t *testing.T) {
	for name, c := range map[string]struct {
		parts []int // bytes read after each window that came in
		grows bool
	}{
		"keeps up": {[]int{firstWindow, firstWindow / 2}, true},
		"slow":     {[]int{firstWindow / 2, firstWindow / 2}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := session(t)
			st, id := opened(t, s, p)
			s.mu.Lock()
			s.path.target = maxWindow
			s.path.next = time.Now().Add(time.Hour)
			s.mu.Unlock()
			go io.Copy(io.Discard, p.c) // what we send
			send, unread := firstWindow, int64(0)
			for _, n := range c.parts {
				for ; send > 0; send -= maxFrameBytes {
					p.WriteData(id, false, make([]byte, maxFrameBytes))
					unread += maxFrameBytes
				}
				for !s.holds(unread) {
					time.Sleep(time.Millisecond)
				}
				unread -= int64(n)
				if _, err := io.ReadFull(st, make([]byte, n)); err != nil {
					t.Fatal(err)
				}
				send = n
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if grown := st.window > firstWindow; grown != c.grows {
				t.Errorf("a window of %d KiB", st.window>>10)
			}
		})
	}
}

func (s *Session) holds(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held == n || s.err != nil
}

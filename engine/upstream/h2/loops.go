package h2

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// errReset is what a reset stream's user can branch on, as for TCP.
const errReset = syscall.ECONNRESET

// enqueue has the writer send a control frame; it never blocks.
func (s *Session) enqueue(c control) {
	s.mu.Lock()
	s.enqueueLocked(c)
	s.mu.Unlock()
}

func (s *Session) enqueueLocked(c control) {
	s.queue = append(s.queue, c)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// writeLoop sends what is queued: the preface, then control frames.
func (s *Session) writeLoop() {
	defer s.wg.Done()
	for {
		select {
		case <-s.done:
			return
		case <-s.wake:
		}
		if err := s.flushQueue(); err != nil {
			s.end(fmt.Errorf("write: %w", err))
			return
		}
	}
}

// preface is RFC 9113 section 3.4. It goes to the buffer, which has room, so
// that New does not block and no request overtakes it.
func (s *Session) preface() {
	_, _ = s.bw.WriteString(http2.ClientPreface)
	_ = s.framer.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: firstWindow},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: maxFrameBytes},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHeaderBytes},
	)
	_ = s.framer.WriteWindowUpdate(0, connWindow-protocolWindow)
	s.wake <- struct{}{}
}

func (s *Session) flushQueue() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.mu.Lock()
	queue := s.queue
	s.queue = nil
	s.mu.Unlock()
	for _, c := range queue {
		if err := s.writeControl(c); err != nil {
			return err
		}
	}
	return s.bw.Flush()
}

func (s *Session) writeControl(c control) error {
	switch c.kind {
	case http2.FrameWindowUpdate:
		return s.framer.WriteWindowUpdate(c.id, c.n)
	case http2.FrameRSTStream:
		return s.framer.WriteRSTStream(c.id, http2.ErrCode(c.n))
	case http2.FramePing:
		return s.framer.WritePing(c.ack, c.data)
	case http2.FrameSettings:
		return s.framer.WriteSettingsAck()
	case http2.FrameGoAway:
		return s.framer.WriteGoAway(0, http2.ErrCode(c.n), nil)
	}
	return fmt.Errorf("no such control frame: %v", c.kind)
}

// readLoop takes frames until the connection ends.
func (s *Session) readLoop() {
	defer s.wg.Done()
	for {
		f, err := s.framer.ReadFrame()
		s.lastRead.Store(int64(time.Since(s.born)))
		s.pingSent.Store(0)
		if err == nil {
			err = s.handle(f)
		}
		var se http2.StreamError
		if errors.As(err, &se) {
			if st := s.stream(se.StreamID); st != nil {
				st.reset(se.Code, fmt.Errorf("malformed answer: %w", err))
			}
			continue
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the proxy closed the session")
			}
			s.end(fmt.Errorf("read: %w", err))
			return
		}
	}
}

func (s *Session) stream(id uint32) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

// handle acts on one frame. A StreamError resets its stream; any other error
// ends the session.
func (s *Session) handle(f http2.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > maxQueued {
		return errors.New("the proxy floods the session with control frames")
	}
	if _, first := f.(*http2.SettingsFrame); !first && !s.isReady {
		return errors.New("the proxy's first frame is not SETTINGS")
	}
	switch f := f.(type) {
	case *http2.DataFrame:
		return s.data(f)
	case *http2.MetaHeadersFrame:
		return s.headers(f)
	case *http2.WindowUpdateFrame:
		return s.windowUpdate(f)
	case *http2.RSTStreamFrame:
		if st := s.streams[f.StreamID]; st != nil {
			st.wasReset(f.ErrCode)
		}
	case *http2.SettingsFrame:
		return s.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			s.enqueueLocked(control{kind: http2.FramePing, ack: true, data: f.Data})
		}
	case *http2.GoAwayFrame:
		s.goAway(f)
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

func (s *Session) data(f *http2.DataFrame) error {
	// Padding counts (RFC 9113 section 6.9.1).
	s.received += int64(f.Length)
	if s.received >= connWindow/2 || s.received >= 4*firstWindow {
		s.enqueueLocked(control{kind: http2.FrameWindowUpdate, n: uint32(s.received)})
		s.received = 0
	}
	st := s.streams[f.StreamID]
	if st == nil {
		if f.StreamID >= s.nextID {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil // of a stream that we have reset
	}
	return st.received(f)
}

func (s *Session) headers(f *http2.MetaHeadersFrame) error {
	st := s.streams[f.StreamID]
	if st == nil {
		if f.StreamID >= s.nextID {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil
	}
	malformed := http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	if st.response.Status != 0 { // trailers
		if !f.StreamEnded() {
			return malformed
		}
		st.endLocked()
		return nil
	}
	if f.Truncated {
		return malformed
	}
	status, err := strconv.Atoi(f.PseudoValue("status"))
	if err != nil || status < 100 || status > 999 {
		return malformed
	}
	if status < 200 {
		if st.interim++; st.interim > maxInterim || f.StreamEnded() {
			return malformed
		}
		return nil
	}
	st.answered = true
	st.response = Response{Status: status, Fields: append([]hpack.HeaderField(nil), f.RegularFields()...)}
	if f.StreamEnded() {
		st.endLocked()
	}
	st.answerOnce.Do(func() { close(st.answer) })
	return nil
}

func (s *Session) windowUpdate(f *http2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		if s.sendWindow += int64(f.Increment); s.sendWindow > math.MaxInt32 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		for _, st := range s.streams {
			signal(st.writable)
		}
		return nil
	}
	if st := s.streams[f.StreamID]; st != nil {
		if st.sendWindow += int64(f.Increment); st.sendWindow > math.MaxInt32 {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
		}
		signal(st.writable)
	}
	return nil
}

func (s *Session) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if !s.isReady {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil
	}
	err := f.ForeachSetting(func(v http2.Setting) error {
		if err := v.Valid(); err != nil {
			return err
		}
		switch v.ID {
		case http2.SettingMaxConcurrentStreams:
			s.maxStreams = int(min(v.Val, unlimitedPeers))
		case http2.SettingMaxFrameSize:
			s.peerFrame = int(min(v.Val, writeBufBytes))
		case http2.SettingInitialWindowSize:
			delta := int64(v.Val) - s.peerFirst
			s.peerFirst = int64(v.Val)
			for _, st := range s.streams { // RFC 9113 section 6.9.2
				if st.sendWindow += delta; st.sendWindow > math.MaxInt32 {
					return http2.ConnectionError(http2.ErrCodeFlowControl)
				}
				signal(st.writable)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.enqueueLocked(control{kind: http2.FrameSettings})
	if !s.isReady {
		s.isReady = true
		close(s.ready)
	}
	return nil
}

// goAway: streams above the last identifier were not and will not be
// processed (RFC 9113 section 6.8); the others run on.
func (s *Session) goAway(f *http2.GoAwayFrame) {
	s.draining = true
	for id, st := range s.streams {
		if id > f.LastStreamID {
			delete(s.streams, id)
			st.failLocked(fmt.Errorf("%w: the proxy is closing the session (GOAWAY, %v)", ErrUnprocessed, f.ErrCode))
		}
	}
	s.emptiedLocked()
}

// emptiedLocked notes when the last stream has gone.
func (s *Session) emptiedLocked() {
	if len(s.streams) == 0 {
		s.idleSince = time.Now()
	}
}

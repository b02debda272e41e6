package h2

import (
	"encoding/binary"
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

// errNoSettings is why a session ends whose peer begins otherwise (RFC 9113
// section 3.4).
var errNoSettings = errors.New("the proxy's first frame is not SETTINGS")

// readLoop takes frames until the connection ends.
func (s *Session) readLoop() {
	defer s.wg.Done()
	for {
		if err := s.readFrame(); err != nil && !s.survives(err) {
			return
		}
	}
}

// survives ends the stream or the session that err is about.
func (s *Session) survives(err error) bool {
	var se http2.StreamError
	if errors.As(err, &se) {
		if st := s.stream(se.StreamID); st != nil {
			st.reset(se.Code, fmt.Errorf("malformed answer: %w", err))
		}
		return true
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the proxy closed the session")
	}
	s.end(fmt.Errorf("read: %w", err))
	return false
}

// readFrame takes one frame. A StreamError resets its stream; any other error
// ends the session.
func (s *Session) readFrame() error {
	h, err := s.framer.ReadFrameHeader()
	if err != nil {
		return err
	}
	s.lastRead.Store(int64(time.Since(s.born)))
	switch h.Type { // the Framer allocates for these
	case http2.FrameData:
		return s.data(h)
	case http2.FrameWindowUpdate:
		return s.readWindowUpdate(h)
	}
	f, err := s.framer.ReadFrameForHeader(h)
	if err != nil {
		return err
	}
	return s.handle(f)
}

func (s *Session) stream(id uint32) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

// handle acts on a frame that is not DATA.
func (s *Session) handle(f http2.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owed > maxOwed {
		return errors.New("the proxy floods the session with control frames")
	}
	if _, first := f.(*http2.SettingsFrame); !first && !s.isReady {
		return errNoSettings
	}
	s.path.suspect = false
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return s.headers(f)
	case *http2.RSTStreamFrame:
		if st := s.streams[f.StreamID]; st != nil {
			st.wasReset(f.ErrCode)
		}
	case *http2.SettingsFrame:
		return s.settings(f)
	case *http2.PingFrame:
		if f.IsAck() {
			s.pongLocked(f.Data)
		} else {
			s.owed++
			s.enqueueLocked(control{kind: http2.FramePing, ack: true, data: f.Data})
		}
	case *http2.GoAwayFrame:
		s.goAway(f)
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

// data reads a DATA frame's payload into chunks of its stream, or past it.
func (s *Session) data(h http2.FrameHeader) error {
	left, pad := int(h.Length), 0
	if h.Flags.Has(http2.FlagDataPadded) {
		if left == 0 {
			return http2.ConnectionError(http2.ErrCodeFrameSize)
		}
		b, err := s.br.ReadByte()
		if err != nil {
			return err
		}
		if left, pad = left-1, int(b); pad > left {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		left -= pad
	}
	st, fault := s.admitData(h, left)
	for left > 0 && st != nil {
		c := s.cur
		if c == nil {
			c = s.pool.Get().(*chunk)
			c.next, c.r, c.w = nil, 0, 0
			s.cur = c
		}
		n, err := io.ReadFull(s.br, c.b[:min(left, len(c.b))])
		if err != nil {
			return err
		}
		c.w = n
		left -= n
		if !st.deliver(c) {
			continue
		}
		s.cur = nil
	}
	if _, err := s.br.Discard(left + pad); err != nil {
		return err
	}
	if st != nil && h.Flags.Has(http2.FlagDataEndStream) {
		s.mu.Lock()
		st.endLocked()
		s.mu.Unlock()
	}
	return fault
}

// admitData accounts for a DATA frame (padding counts, RFC 9113 section
// 6.9.1) and finds the stream that takes its payload bytes, nil if none does.
// A StreamError is for after the payload has been read.
func (s *Session) admitData(h http2.FrameHeader, payload int) (*Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isReady {
		return nil, errNoSettings
	}
	if h.StreamID == 0 || h.StreamID >= s.nextID {
		return nil, http2.ConnectionError(http2.ErrCodeProtocol)
	}
	s.received += int64(h.Length)
	if s.received > connWindow {
		return nil, http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	s.moved.Add(int64(h.Length))
	s.lastData.Store(s.lastRead.Load())
	if s.empty++; payload > 0 || h.Flags.Has(http2.FlagDataEndStream) {
		s.empty = 0
	} else if s.empty > maxEmpty {
		return nil, http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	s.path.suspect = false
	s.sampleLocked(int64(h.Length))
	s.creditLocked()
	st := s.streams[h.StreamID]
	if st == nil {
		return nil, nil // one that we have reset
	}
	if !st.answered || st.ended {
		return nil, http2.StreamError{StreamID: st.id, Code: http2.ErrCodeStreamClosed}
	}
	if st.recvLeft -= int64(h.Length); st.recvLeft < 0 {
		return nil, http2.StreamError{StreamID: st.id, Code: http2.ErrCodeFlowControl}
	}
	st.creditLocked(int64(h.Length) - int64(payload))
	return st, nil
}

// creditLocked returns what arrived to the connection's window, unless streams
// hold so much unread that memory goes first.
func (s *Session) creditLocked() {
	if s.received >= connWindow/4 && s.held <= maxHeldBytes {
		s.enqueueLocked(control{kind: http2.FrameWindowUpdate, n: uint32(s.received)})
		s.received = 0
	}
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
	s.answered++
	s.proven = max(s.proven, s.answered)
	st.response = Response{Status: status, Fields: append([]hpack.HeaderField(nil), f.RegularFields()...)}
	if f.StreamEnded() {
		st.endLocked()
	}
	if st.abandoned {
		st.leaveLocked()
	}
	st.answerOnce.Do(func() { close(st.answer) })
	return nil
}

// readWindowUpdate takes a WINDOW_UPDATE frame (RFC 9113 section 6.9).
func (s *Session) readWindowUpdate(h http2.FrameHeader) error {
	if h.Length != 4 {
		return http2.ConnectionError(http2.ErrCodeFrameSize)
	}
	b, err := s.br.Peek(4)
	if err != nil {
		return err
	}
	add := int64(binary.BigEndian.Uint32(b) & math.MaxInt32)
	_, _ = s.br.Discard(4)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.isReady:
		return errNoSettings
	case add == 0 && h.StreamID == 0:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case add == 0:
		return http2.StreamError{StreamID: h.StreamID, Code: http2.ErrCodeProtocol}
	}
	s.path.suspect = false
	return s.windowUpdate(h.StreamID, add)
}

func (s *Session) windowUpdate(id uint32, add int64) error {
	if id == 0 {
		if s.sendWindow += add; s.sendWindow > math.MaxInt32 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		for _, st := range s.starved {
			st.starved = false
			signal(st.writable)
		}
		clear(s.starved)
		s.starved = s.starved[:0]
		return nil
	}
	if st := s.streams[id]; st != nil {
		if st.sendWindow += add; st.sendWindow > math.MaxInt32 {
			return http2.StreamError{StreamID: id, Code: http2.ErrCodeFlowControl}
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
			s.peerFrame = int(min(v.Val, writeBytes))
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
	s.owed++
	s.enqueueLocked(control{kind: http2.FrameSettings})
	if !s.isReady {
		s.isReady = true
		signal(s.rouse)
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
			st.failLocked(fmt.Errorf("%w: %w: %v", ErrUnprocessed, errGoAway, f.ErrCode))
			st.dropIfDoneLocked()
		}
	}
	s.emptiedLocked()
}

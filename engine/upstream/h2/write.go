package h2

import (
	"fmt"
	"time"

	"golang.org/x/net/http2"
)

const (
	slowWrite    = 20 * time.Millisecond // a write that takes longer means a congested path
	maxKeptBytes = 64 << 10              // of an empty output buffer
)

// control is a queued frame.
type control struct {
	kind http2.FrameType
	id   uint32
	n    uint32
	ack  bool
	data [8]byte
}

// frames is what is to be written next.
type frames struct{ b []byte }

// Write implements io.Writer, for the Framer.
func (f *frames) Write(p []byte) (int, error) {
	f.b = append(f.b, p...)
	return len(p), nil
}

// data appends DATA frames; an empty p is for END_STREAM only.
func (f *frames) data(id uint32, p []byte, frameBytes int, end bool) {
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), frameBytes)
		var flags byte
		if end && n == len(p) {
			flags = byte(http2.FlagDataEndStream)
		}
		f.b = append(f.b, byte(n>>16), byte(n>>8), byte(n), byte(http2.FrameData), flags,
			byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
		f.b = append(f.b, p[:n]...)
		p = p[n:]
	}
}

// enqueueLocked has a control frame sent; it never blocks.
func (s *Session) enqueueLocked(c control) {
	s.queue = append(s.queue, c)
	signal(s.wake)
}

// writeLoop sends what is queued when nobody else does.
func (s *Session) writeLoop() {
	defer s.wg.Done()
	for {
		select {
		case <-s.done:
			return
		case <-s.wake:
		}
		s.wmu.Lock()
		err := s.sendOut()
		s.wmu.Unlock()
		if err != nil {
			return
		}
	}
}

// preface is RFC 9113 section 3.4. It goes to the buffer, so that New does not
// block and no request overtakes it.
func (s *Session) preface() {
	s.out.b = append(s.out.b, http2.ClientPreface...)
	_ = s.framer.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: baseWindow},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: maxFrameBytes},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHeaderBytes},
	)
	_ = s.framer.WriteWindowUpdate(0, connWindow-protocolWindow)
	signal(s.wake)
}

// sendOut writes the buffer and what is queued; wmu is held. An error ends
// the session.
func (s *Session) sendOut() error {
	s.takeQueue()
	return s.writeOut()
}

// takeQueue moves what is queued into the buffer: control frames, then
// requests.
func (s *Session) takeQueue() {
	s.mu.Lock()
	queue := s.queue
	s.queue = s.spare[:0]
	s.owed = 0
	frameBytes := s.peerFrame
	s.mu.Unlock()
	for _, c := range queue {
		s.writeControl(c)
	}
	s.spare = queue
	for {
		s.mu.Lock()
		if len(s.opening) == 0 {
			s.opening = nil
			s.mu.Unlock()
			return
		}
		st := s.opening[0]
		s.opening = s.opening[1:]
		if s.admitLocked(st) {
			s.writeRequestLocked(st, frameBytes)
		} else {
			s.emptiedLocked()
		}
		s.mu.Unlock()
	}
}

// wrote notes that an answer of some sort is due.
func (s *Session) wrote() {
	now := int64(time.Since(s.born))
	if last := s.lastWrite.Swap(now); now-last > int64(askWaiting) {
		signal(s.rouse)
	}
}

// writeOut writes the buffer; wmu is held.
func (s *Session) writeOut() error {
	if len(s.out.b) == 0 {
		return nil
	}
	begin := time.Now()
	_, err := s.conn.Write(s.out.b)
	if s.out.b = s.out.b[:0]; cap(s.out.b) > maxKeptBytes {
		s.out.b = nil
	}
	if err != nil {
		err = fmt.Errorf("write: %w", err)
		s.end(err)
		return err
	}
	if time.Since(begin) > slowWrite {
		s.blocked.Store(int64(time.Since(s.born)))
	}
	return nil
}

// writeData sends a stream's bytes; n of them have been taken from the
// windows.
func (s *Session) writeData(id uint32, p []byte, end bool) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.mu.Lock()
	s.sampleLocked(0)
	frameBytes, err := s.peerFrame, s.err
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.takeQueue()
	s.out.data(id, p, frameBytes, end)
	s.moved.Add(int64(len(p)))
	s.wrote()
	return s.writeOut()
}

// writeControl cannot fail: it writes to memory.
func (s *Session) writeControl(c control) {
	switch c.kind {
	case http2.FrameData:
		s.out.data(c.id, nil, 0, true)
	case http2.FrameWindowUpdate:
		_ = s.framer.WriteWindowUpdate(c.id, c.n)
	case http2.FrameRSTStream:
		_ = s.framer.WriteRSTStream(c.id, http2.ErrCode(c.n))
	case http2.FramePing:
		_ = s.framer.WritePing(c.ack, c.data)
	case http2.FrameSettings:
		_ = s.framer.WriteSettingsAck()
	}
}

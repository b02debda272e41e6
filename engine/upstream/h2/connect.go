package h2

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Response is the proxy's final answer to a CONNECT.
type Response struct {
	Status int
	Fields []hpack.HeaderField // at most 16 KiB
}

// request is what Open has the writer send.
type request struct {
	authority string
	early     []byte
	fields    []hpack.HeaderField
}

// Connect asks for a tunnel to authority ("host:port") with the extra fields,
// sends early along, and waits for the answer. It needs a place from Reserve.
// The stream is nil if the answer is not 2xx. ErrUnprocessed: another session
// may be tried.
func (s *Session) Connect(ctx context.Context, authority string, early []byte, fields ...hpack.HeaderField) (*Stream, Response, error) {
	st, err := s.Open(authority, early, fields...)
	if err != nil {
		return nil, Response{}, err
	}
	select {
	case <-st.Answered():
	case <-ctx.Done():
		st.Abandon()
		return nil, Response{}, context.Cause(ctx)
	}
	r, err := st.Accept(ctx)
	if err != nil || r.Status < 200 || r.Status > 299 {
		return nil, r, err
	}
	return st, r, nil
}

// Open sends the request for a tunnel and, without waiting for the answer, as
// much of early as the peer's windows take; the rest goes when it accepts. It
// needs a place from Reserve and keeps early until Answered is closed. The
// stream is for Answered, Accept and Abandon until Accept has returned 2xx.
func (s *Session) Open(authority string, early []byte, fields ...hpack.HeaderField) (*Stream, error) {
	st := newStream(s)
	st.request = request{authority, early, fields}
	s.mu.Lock()
	s.reserved--
	err := s.err
	if err == nil && !s.usableLocked() {
		err = errGoAway
	}
	if err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: %w", ErrUnprocessed, err)
	}
	s.opening = append(s.opening, st)
	s.mu.Unlock()
	if s.wmu.TryLock() {
		s.sendOut() // if it fails, st has failed too
		s.wmu.Unlock()
	} else {
		signal(s.wake) // or whoever writes now takes it along
	}
	return st, nil
}

// Answered is closed when Accept has something to tell.
func (st *Stream) Answered() <-chan struct{} { return st.answer }

// Accept gives the answer, once Answered is closed; before, it must not be
// called. If it is 2xx the caller owns the stream, and what of early had to
// wait has been sent, by ctx's deadline; else there is no stream.
func (st *Stream) Accept(ctx context.Context) (Response, error) {
	st.s.mu.Lock()
	r, rest, err := st.response, st.request.early, st.err
	st.request = request{}
	st.s.mu.Unlock()
	if r.Status == 0 {
		return Response{}, err
	}
	if r.Status < 200 || r.Status > 299 {
		st.reset(http2.ErrCodeCancel, io.ErrClosedPipe)
		return r, nil
	}
	if len(rest) > 0 {
		limit, _ := ctx.Deadline()
		_ = st.SetWriteDeadline(limit)
		if _, err := st.Write(rest); err != nil {
			st.reset(http2.ErrCodeCancel, err)
			return Response{}, err
		}
		_ = st.SetWriteDeadline(time.Time{})
	}
	return r, nil
}

// Abandon gives an unanswered request up. If it has left, it is ended as an app
// ends a connection that it no longer needs, once the answer is there, and
// keeps its place until then: a server may end the whole session, and every
// other stream in it, where RST_STREAM crosses an answer that it is about to
// send (Apache 2.4.71 does: "not sent FRAME[HEADERS]", GOAWAY).
func (st *Stream) Abandon() {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.id == 0 || st.answered || st.err != nil {
		st.resetLocked(http2.ErrCodeCancel, context.Canceled)
		return
	}
	st.abandoned = true
	s.extra -= st.window - baseWindow // nothing will be kept of what arrives
	st.window = baseWindow
	time.AfterFunc(abandonedTime, func() { st.reset(http2.ErrCodeCancel, context.Canceled) })
}

// leaveLocked ends an abandoned stream that has been answered. What comes
// before the peer ends it too resets it.
func (st *Stream) leaveLocked() {
	st.s.enqueueLocked(control{kind: http2.FrameData, id: st.id})
	st.sentEnd = true
	st.dropIfDoneLocked()
}

// admitLocked gives a queued request its identifier; mu and wmu are held, so
// that identifiers go out in order.
func (s *Session) admitLocked(st *Stream) bool {
	switch {
	case st.err != nil:
		return false // given up meanwhile
	case s.draining || s.nextID > lastStreamID:
		st.failLocked(fmt.Errorf("%w: %w", ErrUnprocessed, errGoAway))
		return false
	}
	st.id = s.nextID
	s.nextID += 2
	s.streams[st.id] = st
	st.sendWindow = s.peerFirst
	st.widenLocked(min(firstWindow, s.path.target), extraBytes/2)
	st.recvLeft = st.window
	return true
}

// writeRequestLocked puts a request into out, and what the windows take of
// early; wmu is held too.
func (s *Session) writeRequestLocked(st *Stream, frameBytes int) {
	s.encBuf.Reset()
	s.encode(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	s.encode(hpack.HeaderField{Name: ":authority", Value: st.request.authority})
	for _, f := range st.request.fields {
		s.encode(f)
	}
	block := s.encBuf.Bytes()
	first := block[:min(len(block), frameBytes)]
	rest := block[len(first):]
	_ = s.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: st.id, BlockFragment: first, EndHeaders: len(rest) == 0,
	})
	for len(rest) > 0 {
		part := rest[:min(len(rest), frameBytes)]
		rest = rest[len(part):]
		_ = s.framer.WriteContinuation(st.id, len(rest) == 0, part)
	}
	if add := st.window - baseWindow; add > 0 {
		_ = s.framer.WriteWindowUpdate(st.id, uint32(add))
	}
	early := st.request.early
	if n := max(0, min(int64(len(early)), st.sendWindow, s.sendWindow, writeBytes)); n > 0 {
		s.out.data(st.id, early[:n], frameBytes, false)
		st.request.early = early[n:]
		st.sendWindow -= n
		s.sendWindow -= n
		s.moved.Add(n)
	}
	s.wrote()
}

// encode cannot fail: it writes to memory.
func (s *Session) encode(f hpack.HeaderField) { _ = s.enc.WriteField(f) }

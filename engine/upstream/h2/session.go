// Package h2 carries TCP streams to a proxy in one HTTP/2 connection, each by
// a CONNECT request (RFC 9113 section 8.5).
//
//	Stream.Write ─ windows ─► wmu: framer ─► conn        (the writer's own goroutine)
//	   control frames ─► queue ─► writer goroutine ─┘
//	conn ─► read loop ─► Stream's chunks ─► Stream.Read, Stream.WriteTo
//
// golang.org/x/net/http2's Transport could do it too, with a pipe for the
// request's body: but a pipe costs a goroutine and a copy per stream, and the
// Transport has no half-close that can be told from an end, no deadlines, and
// hides which error code a stream was reset with. CONNECT needs a small part
// of HTTP/2, so this is that part, over x/net's Framer and hpack.
//
// Flow control: a stream's window starts at 512 KiB and doubles up to 8 MiB as
// long as its reader keeps up, so that a fast download is not held back and a
// stalled reader holds little memory. The connection's window is returned as
// bytes arrive: one stalled stream never stalls the others.
//
// Only engine/upstream imports this.
package h2

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	firstWindow     = 512 << 10 // bytes; a stream's receive window at first
	maxWindow       = 8 << 20   // bytes; that it can grow to
	connWindow      = 1 << 30   // bytes; of the connection, see package doc
	protocolWindow  = 65535     // RFC 9113 section 6.9.2, before any SETTINGS
	maxFrameBytes   = 16 << 10  // we accept no longer frames
	maxHeaderBytes  = 16 << 10  // of one answer's fields
	maxQueued       = 1000      // control frames: beyond, the peer floods us
	maxInterim      = 8         // 1xx answers to one CONNECT
	silence         = 5 * time.Second
	pingTimeout     = 4 * time.Second
	lastStreamID    = 1 << 30
	writeBufBytes   = 32 << 10
	readBufBytes    = 32 << 10
	maxPeerFrame    = 1 << 24
	unlimitedPeers  = 1 << 20 // MAX_CONCURRENT_STREAMS if the peer names none
	settingsTimeout = 10 * time.Second
)

// ErrUnprocessed says that the proxy has not acted on the request, or that the
// session ended before an answer: nothing of the client's was sent, and another
// session may be tried.
var ErrUnprocessed = errors.New("request was not processed")

// errClosed is why a session ended that Close ended.
var errClosed = fmt.Errorf("session closed: %w", net.ErrClosed)

// Session is one HTTP/2 connection, as client.
type Session struct {
	conn net.Conn
	born time.Time

	ready     chan struct{}  // closed on the peer's first SETTINGS
	done      chan struct{}  // closed when the session has ended
	wg        sync.WaitGroup // read loop, writer, watch
	wake      chan struct{}  // cap 1: control frames are queued
	lastRead  atomic.Int64   // ns since born
	pingSent  atomic.Int64   // ns since born, 0 if none is outstanding
	closeOnce sync.Once

	wmu    sync.Mutex // held while writing; taken before mu
	bw     *bufio.Writer
	framer *http2.Framer // written under wmu, read by the read loop
	enc    *hpack.Encoder
	encBuf bytes.Buffer // guarded by wmu

	mu         sync.Mutex
	err        error // why it ended
	isReady    bool
	draining   bool // after GOAWAY: no new streams
	streams    map[uint32]*Stream
	reserved   int
	nextID     uint32
	maxStreams int
	idleSince  time.Time // when the last stream ended
	sendWindow int64     // of the connection
	peerFirst  int64     // a stream's send window at first
	peerFrame  int       // longest frame the peer takes
	received   int64     // not yet returned to the connection's window
	queue      []control

	pool sync.Pool // *chunk
}

// control is a queued frame.
type control struct {
	kind http2.FrameType
	id   uint32
	n    uint32
	ack  bool
	data [8]byte
}

// New starts a session on conn, which negotiated "h2", and owns it. It does
// not wait for the peer.
func New(conn net.Conn) *Session {
	s := &Session{
		conn:       conn,
		born:       time.Now(),
		ready:      make(chan struct{}),
		done:       make(chan struct{}),
		wake:       make(chan struct{}, 1),
		bw:         bufio.NewWriterSize(conn, writeBufBytes),
		streams:    make(map[uint32]*Stream),
		nextID:     1,
		maxStreams: unlimitedPeers,
		idleSince:  time.Now(),
		sendWindow: protocolWindow,
		peerFirst:  protocolWindow,
		peerFrame:  maxFrameBytes,
	}
	s.pool.New = func() any { return new(chunk) }
	s.framer = http2.NewFramer(s.bw, bufio.NewReaderSize(conn, readBufBytes))
	s.framer.SetMaxReadFrameSize(maxFrameBytes)
	s.framer.SetReuseFrames()
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.framer.MaxHeaderListSize = maxHeaderBytes
	s.enc = hpack.NewEncoder(&s.encBuf)
	s.enc.SetMaxDynamicTableSize(0) // no state that outlives a request
	s.preface()
	s.wg.Add(3)
	go s.writeLoop()
	go s.readLoop()
	go s.watch()
	return s
}

// Ready is closed when the peer has said how many streams it takes.
func (s *Session) Ready() <-chan struct{} { return s.ready }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Reserve takes one of the peer's places for a stream, if the session is alive
// and has one; Connect uses it up. Before the peer's SETTINGS only the first
// caller gets one.
func (s *Session) Reserve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.draining || s.nextID > lastStreamID {
		return false
	}
	limit := s.maxStreams
	if !s.isReady {
		limit = 1
	}
	if len(s.streams)+s.reserved >= limit {
		return false
	}
	s.reserved++
	return true
}

// Usable says that the session may get free places again.
func (s *Session) Usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil && !s.draining && s.nextID <= lastStreamID
}

// Idle is how long the session has been without streams; 0 if it has some.
func (s *Session) Idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams)+s.reserved > 0 {
		return 0
	}
	return time.Since(s.idleSince)
}

// Close ends the session and its streams, and waits for its goroutines.
func (s *Session) Close() error {
	s.end(errClosed)
	s.wg.Wait()
	return nil
}

// end stops the session. The first reason counts.
func (s *Session) end(err error) {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.err = err
		all := make([]*Stream, 0, len(s.streams))
		for _, st := range s.streams {
			all = append(all, st)
		}
		clear(s.streams)
		for _, st := range all {
			st.failLocked(s.lostLocked(st))
		}
		s.mu.Unlock()
		close(s.done)
		_ = s.conn.SetDeadline(time.Now()) // unblocks a writer; tls.Conn.Close waits for it
		_ = s.conn.Close()
	})
}

// lostLocked is what a stream's user sees when the session has ended.
func (s *Session) lostLocked(st *Stream) error {
	if !st.answered {
		return fmt.Errorf("%w: %w", ErrUnprocessed, s.err)
	}
	return &net.OpError{Op: "read", Net: "h2", Err: fmt.Errorf("%w: %w", errReset, s.err)}
}

// Response is the proxy's final answer to a CONNECT.
type Response struct {
	Status int
	Fields []hpack.HeaderField // at most 16 KiB
}

// Connect asks for a tunnel to authority ("host:port") with the extra fields
// and waits for the answer. It needs a place from Reserve. The stream is nil
// if the answer is not 2xx. ErrUnprocessed: another session may be tried.
func (s *Session) Connect(ctx context.Context, authority string, fields ...hpack.HeaderField) (*Stream, Response, error) {
	st, err := s.open(authority, fields)
	if err != nil {
		return nil, Response{}, err
	}
	select {
	case <-st.answer:
	case <-ctx.Done():
		st.reset(http2.ErrCodeCancel, context.Cause(ctx))
		return nil, Response{}, context.Cause(ctx)
	}
	s.mu.Lock()
	r, err := st.response, st.err
	s.mu.Unlock()
	if r.Status == 0 {
		return nil, Response{}, err
	}
	if r.Status < 200 || r.Status > 299 {
		st.reset(http2.ErrCodeCancel, io.ErrClosedPipe)
		return nil, r, nil
	}
	return st, r, nil
}

// open sends the request. Stream identifiers must go out in order, so the
// identifier is taken under wmu.
func (s *Session) open(authority string, fields []hpack.HeaderField) (*Stream, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.mu.Lock()
	s.reserved--
	if s.err != nil || s.draining {
		err := s.err
		s.mu.Unlock()
		if err == nil {
			err = errors.New("the proxy is closing the session (GOAWAY)")
		}
		return nil, fmt.Errorf("%w: %w", ErrUnprocessed, err)
	}
	st := newStream(s, s.nextID, s.peerFirst)
	s.nextID += 2
	s.streams[st.id] = st
	frameBytes := s.peerFrame
	s.mu.Unlock()

	s.encBuf.Reset()
	s.encode(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	s.encode(hpack.HeaderField{Name: ":authority", Value: authority})
	for _, f := range fields {
		s.encode(f)
	}
	err := s.writeHeaders(st.id, s.encBuf.Bytes(), frameBytes)
	if err == nil {
		err = s.bw.Flush()
	}
	if err != nil {
		s.end(fmt.Errorf("write: %w", err)) // fails st too
	}
	return st, nil
}

// encode cannot fail: it writes to memory.
func (s *Session) encode(f hpack.HeaderField) { _ = s.enc.WriteField(f) }

func (s *Session) writeHeaders(id uint32, block []byte, frameBytes int) error {
	first := block[:min(len(block), frameBytes)]
	rest := block[len(first):]
	err := s.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: first, EndHeaders: len(rest) == 0,
	})
	for err == nil && len(rest) > 0 {
		part := rest[:min(len(rest), frameBytes)]
		rest = rest[len(part):]
		err = s.framer.WriteContinuation(id, len(rest) == 0, part)
	}
	return err
}

// watch ends a session whose peer has fallen silent while streams need it.
func (s *Session) watch() {
	defer s.wg.Done()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		busy, drained := len(s.streams) > 0, s.draining && len(s.streams)+s.reserved == 0
		isReady := s.isReady
		s.mu.Unlock()
		now := int64(time.Since(s.born))
		quiet := time.Duration(now - s.lastRead.Load())
		sent := s.pingSent.Load()
		switch {
		case drained:
			s.end(errClosed)
		case !isReady && quiet > settingsTimeout:
			s.end(errors.New("no SETTINGS from the proxy"))
		case sent != 0 && quiet > silence && time.Duration(now-sent) > pingTimeout:
			s.end(fmt.Errorf("the proxy has been silent for %v and does not answer PING", quiet.Round(time.Second)))
		case busy && sent == 0 && quiet > silence:
			s.pingSent.Store(now)
			s.enqueue(control{kind: http2.FramePing})
		}
	}
}

// Package h2 carries TCP streams to a proxy in one HTTP/2 connection, each by
// a CONNECT request (RFC 9113 section 8.5).
//
//	Stream.Write ─ windows ─┐
//	Session.Open ── queue ──┼─► wmu: frames ─► conn   (who holds wmu sends the queue first)
//	control frames ─ queue ─┘       ▲
//	                     writer goroutine, when nobody else is about to write
//	conn ─► read loop ─► Stream's chunks ─► Stream.Read, Stream.WriteTo
//
// golang.org/x/net/http2's Transport could do it too, with a pipe for the
// request's body: but a pipe costs a goroutine and a copy per stream, and the
// Transport has no half-close that can be told from an end, no deadlines, no
// way to send data before the answer, and hides which error code a stream was
// reset with. CONNECT needs a small part of HTTP/2, so this is that part, over
// x/net's Framer and hpack. DATA frames pass by the Framer: their bytes are
// read into the chunk that they are delivered from.
//
// Flow control (path.go): a stream's window follows the path's bandwidth-delay
// product as long as its reader keeps up, so that a fast download is not held
// back and a stalled reader holds little memory. The connection's window is
// returned as bytes arrive: one stalled stream never stalls the others.
//
// Only engine/upstream imports this.
package h2

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	baseWindow      = 64 << 10  // bytes; a stream's receive window by SETTINGS
	firstWindow     = 512 << 10 // bytes; that it is raised to as it opens, as long as there are extraBytes
	maxWindow       = 4 << 20   // bytes; that it can grow to
	extraBytes      = 16 << 20  // of all streams' windows beyond baseWindow; half of it is for growing
	connWindow      = 16 << 20  // bytes; of the connection, see package doc
	maxHeldBytes    = 32 << 20  // unread in all streams: beyond, the connection's window is not returned
	protocolWindow  = 65535     // RFC 9113 section 6.9.2, before any SETTINGS
	maxFrameBytes   = 16 << 10  // we accept no longer frames
	maxHeaderBytes  = 16 << 10  // of one answer's fields
	maxOwed         = 1000      // answers to PING and SETTINGS: beyond, the peer floods us
	maxEmpty        = 1000      // DATA frames in a row that bring nothing
	maxInterim      = 8         // 1xx answers to one CONNECT
	lastStreamID    = 1 << 30
	writeBytes      = 32 << 10 // of one stream at a time
	readBufBytes    = 4 << 10  // for frame headers and control frames; longer payloads pass it by
	unlimitedPeers  = 1 << 20  // MAX_CONCURRENT_STREAMS if the peer names none
	settingsTimeout = 10 * time.Second
	abandonedTime   = 10 * time.Second // for an answer that nobody waits for
)

// ErrUnprocessed says that the proxy has not acted on the request, or that the
// session ended before an answer: another session may be tried.
var ErrUnprocessed = errors.New("request was not processed")

// errClosed is why a session ended that Close ended.
var errClosed = fmt.Errorf("session closed: %w", net.ErrClosed)

// errGoAway is why a session takes no more streams.
var errGoAway = errors.New("the proxy is closing the session (GOAWAY)")

// Session is one HTTP/2 connection, as client.
type Session struct {
	conn net.Conn
	born time.Time

	ready     chan struct{}  // closed on the peer's first SETTINGS
	done      chan struct{}  // closed when the session has ended
	wg        sync.WaitGroup // read loop, writer, watch
	wake      chan struct{}  // cap 1: something is queued
	rouse     chan struct{}  // cap 1: watch is to look
	lastRead  atomic.Int64   // ns since born
	lastData  atomic.Int64   // ns since born; of a stream's bytes
	lastWrite atomic.Int64   // ns since born; of a stream's bytes or request
	blocked   atomic.Int64   // ns since born: when a writer last had to wait for the connection
	moved     atomic.Int64   // bytes of streams, both ways
	closeOnce sync.Once

	wmu    sync.Mutex     // held while writing; taken before mu
	out    frames         // guarded by wmu
	framer *http2.Framer  // writes to out under wmu, reads in the read loop
	enc    *hpack.Encoder // guarded by wmu
	encBuf bytes.Buffer   // guarded by wmu
	spare  []control      // guarded by wmu

	br  *bufio.Reader // the read loop's
	cur *chunk        // the read loop's: what the next DATA is read into

	mu         sync.Mutex
	err        error // why it ended
	isReady    bool
	draining   bool // after GOAWAY or Retire: no new streams
	streams    map[uint32]*Stream
	opening    []*Stream // not yet sent
	reserved   int
	answered   int // of streams
	proven     int // the most that answered ever was
	nextID     uint32
	maxStreams int
	limit      int       // of streams, 0 if only the peer's counts
	idleSince  time.Time // when the last stream ended
	sendWindow int64     // of the connection
	starved    []*Stream // wait for sendWindow
	peerFirst  int64     // a stream's send window at first
	peerFrame  int       // longest frame the peer takes
	received   int64     // not yet returned to the connection's window
	held       int64     // bytes that streams hold unread
	extra      int64     // bytes of streams' windows beyond baseWindow
	empty      int       // DATA frames in a row that brought nothing
	owed       int       // answers to PING and SETTINGS in queue
	queue      []control
	path       path
	meter      meter

	pool sync.Pool // *chunk
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
		rouse:      make(chan struct{}, 1),
		br:         bufio.NewReaderSize(conn, readBufBytes),
		streams:    make(map[uint32]*Stream),
		nextID:     1,
		maxStreams: unlimitedPeers,
		idleSince:  time.Now(),
		sendWindow: protocolWindow,
		peerFirst:  protocolWindow,
		peerFrame:  maxFrameBytes,
		path:       path{target: firstWindow},
	}
	s.pool.New = func() any { return new(chunk) }
	s.framer = http2.NewFramer(&s.out, s.br)
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
// and has one; Open uses it up. Before the peer's SETTINGS only the first
// caller gets one.
func (s *Session) Reserve() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.usableLocked() || s.freeLocked() <= 0 {
		return false
	}
	s.reserved++
	if s.reserved+s.openLocked() == 1 {
		signal(s.rouse)
	}
	return true
}

// Usable says that the session may get free places again.
func (s *Session) Usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.usableLocked()
}

func (s *Session) usableLocked() bool {
	return s.err == nil && !s.draining && s.nextID <= lastStreamID && !s.path.suspect
}

// openLocked is how many streams count against the peer's limit.
func (s *Session) openLocked() int { return len(s.streams) + len(s.opening) }

func (s *Session) freeLocked() int {
	limit := s.maxStreams
	if !s.isReady {
		limit = 1
	}
	if s.limit > 0 {
		limit = min(limit, s.limit)
	}
	return limit - s.openLocked() - s.reserved
}

// Idle is how long the session has been without streams; 0 if it has some.
func (s *Session) Idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.openLocked()+s.reserved > 0 {
		return 0
	}
	return time.Since(s.idleSince)
}

// Answered is how many open streams the proxy has answered. record: it has
// never been more, so that the next request tries what the proxy can do.
func (s *Session) Answered() (n int, record bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered, s.answered >= s.proven
}

// Limit has the session take at most n streams at once, as long as the peer
// does not allow fewer; 0 lifts that.
func (s *Session) Limit(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = n
}

// Retire takes no more streams, and ends the session when the last is gone, or
// soon if the peer turns out to be out of reach.
func (s *Session) Retire() {
	s.mu.Lock()
	s.draining = true
	s.path.urgent = true
	if s.path.sent.IsZero() {
		s.pingLocked()
	}
	s.mu.Unlock()
	signal(s.rouse)
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
		all := s.opening
		for _, st := range s.streams {
			all = append(all, st)
		}
		clear(s.streams)
		s.opening, s.starved = nil, nil
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

// emptiedLocked notes when the last stream has gone.
func (s *Session) emptiedLocked() {
	if s.openLocked() == 0 {
		s.idleSince = time.Now()
		if s.draining {
			signal(s.rouse)
		}
	}
}

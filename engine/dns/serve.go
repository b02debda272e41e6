package dns

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/miekg/dns"
)

// HandlePackets answers the queries of one UDP socket until it is idle for
// 20 s or ctx ends. What needs no other server is answered at once; of the
// rest 256 wait at a time, and more get SERVFAIL.
func (s *Server) HandlePackets(ctx context.Context, f flow.Flow, app net.PacketConn) {
	defer app.Close()
	defer context.AfterFunc(ctx, func() { app.Close() })()
	buf := s.buffers.Get().(*[maxQueryBytes]byte)
	defer s.buffers.Put(buf)
	for {
		n, server, err := receive(app, buf)
		if err != nil {
			return
		}
		// Most sockets ask once, what is answered at once; others cost more.
		reply, ok := s.quick(buf[n:n], buf[:n], false) // the rest of the buffer has room for it
		if !ok {
			s.handlePackets(ctx, app, buf, n, server)
			return
		}
		if _, err := app.WriteTo(reply, server); err != nil && ctx.Err() != nil {
			return
		}
	}
}

// receive waits for a query, packetIdle at most.
func receive(app net.PacketConn, buf *[maxQueryBytes]byte) (n int, server net.Addr, err error) {
	_ = app.SetReadDeadline(time.Now().Add(packetIdle))
	return app.ReadFrom(buf[:])
}

// handlePackets is HandlePackets from the first query on, n bytes in buf, that
// is not quick.
func (s *Server) handlePackets(ctx context.Context, app net.PacketConn, buf *[maxQueryBytes]byte, n int, server net.Addr) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	slots := make(chan struct{}, packetParallel)
	for {
		reply, q := s.answerNow(buf, n)
		if q != nil {
			select {
			case slots <- struct{}{}:
				asked := server // the next query may be to another
				wg.Go(func() {
					_, _ = app.WriteTo(s.slow(ctx, q), asked)
					<-slots
				})
			default:
				reply = header(buf[:n], dns.RcodeServerFailure)
			}
		}
		if reply != nil {
			if _, err := app.WriteTo(reply, server); err != nil && ctx.Err() != nil {
				return
			}
		}
		var err error
		for n, server, err = receive(app, buf); err != nil; n, server, err = receive(app, buf) {
			if !isTimeout(err) || len(slots) == 0 {
				return
			}
		}
	}
}

// answerNow answers the query in buf if that needs no waiting, in the rest of
// buf where it can. Neither reply nor request means that it was no query.
func (s *Server) answerNow(buf *[maxQueryBytes]byte, n int) (reply []byte, q *request) {
	if reply, ok := s.quick(buf[n:n], buf[:n], false); ok {
		return reply, nil
	}
	reply, q, _ = s.fast(buf[:n], false)
	return reply, q
}

// HandleStream answers queries over TCP (RFC 7766): pipelined, in any order,
// 32 at a time, until the app closes, is idle for 10 s, or ctx ends.
func (s *Server) HandleStream(ctx context.Context, f flow.Flow, p flow.Pending) {
	conn, err := p.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	ctx, cancel := context.WithCancel(ctx)
	w := &streamWriter{conn: conn}
	var wg sync.WaitGroup
	defer cancel()
	defer wg.Wait() // answers under way still go out after the app's FIN
	slots := make(chan struct{}, streamParallel)
	var buf, out []byte
	for {
		_ = conn.SetReadDeadline(time.Now().Add(streamIdle))
		if buf, err = readMessage(conn, buf); err != nil {
			return
		}
		if reply, ok := s.quick(out[:0], buf, true); ok {
			if out = reply; w.write(reply) != nil {
				return
			}
			continue
		}
		reply, q, err := s.fast(buf, true)
		switch {
		case err != nil:
			return // not DNS
		case q == nil:
			if w.write(reply) != nil {
				return
			}
		default:
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				_ = w.write(s.slow(ctx, q))
				<-slots
			})
		}
	}
}

// streamWriter writes whole messages, one after the other.
type streamWriter struct {
	mu   sync.Mutex
	conn net.Conn
	buf  []byte // guarded by mu
}

func (w *streamWriter) write(msg []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	w.buf = appendMessage(w.buf[:0], msg)
	_, err := w.conn.Write(w.buf)
	return err
}

// readMessage reads one message with its length in front (RFC 1035 section
// 4.2.2) into buf, which grows.
func readMessage(r io.Reader, buf []byte) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return buf, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	_, err := io.ReadFull(r, buf)
	return buf, err
}

// writeMessage writes length and message in one go (RFC 7766 section 8).
func writeMessage(w io.Writer, msg []byte) error {
	_, err := w.Write(appendMessage(nil, msg))
	return err
}

func appendMessage(b, msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(msg))), msg...)
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

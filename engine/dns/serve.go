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
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { app.Close() })()
	slots := make(chan struct{}, packetParallel)
	buf := s.buffers.Get().(*[maxQueryBytes]byte)
	defer s.buffers.Put(buf)
	for {
		_ = app.SetReadDeadline(time.Now().Add(packetIdle))
		n, server, err := app.ReadFrom(buf[:])
		if err != nil {
			if isTimeout(err) && len(slots) > 0 {
				continue
			}
			return
		}
		reply, ok := s.quick(buf[n:n], buf[:n], false) // the rest of the buffer has room for it
		if !ok {
			var q *request
			if reply, q, err = s.fast(buf[:n], false); err != nil {
				continue
			}
			if q != nil {
				select {
				case slots <- struct{}{}:
					wg.Go(func() {
						_, _ = app.WriteTo(s.slow(ctx, q), server)
						<-slots
					})
					continue
				default:
					reply = header(buf[:n], dns.RcodeServerFailure)
				}
			}
		}
		if _, err := app.WriteTo(reply, server); err != nil && ctx.Err() != nil {
			return
		}
	}
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

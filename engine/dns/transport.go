package dns

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/miekg/dns"
)

// exchange asks this server. The query gets an ID of its own on the wire; the
// reply has that of q. A server that does not know EDNS is asked without it (RFC
// 6891 section 7), and for a while at once.
func (s *server) exchange(ctx context.Context, q *dns.Msg) ([]byte, error) {
	wire := q.Copy()
	if time.Now().UnixNano() < s.plainUntil.Load() {
		wire.Extra = withoutOPT(wire.Extra)
	}
	reply, err := s.exchangeOnce(ctx, wire)
	if err == nil && wire.IsEdns0() != nil && refusesEDNS(reply) {
		wire.Extra = withoutOPT(wire.Extra)
		if reply, err = s.exchangeOnce(ctx, wire); err == nil && !refusesEDNS(reply) {
			s.plainUntil.Store(time.Now().Add(plainFor).UnixNano())
		}
	}
	if err != nil {
		return nil, err
	}
	reply[0], reply[1] = byte(q.Id>>8), byte(q.Id)
	return reply, nil
}

// refusesEDNS says whether a reply is what servers say that read EDNS as an
// error: by the RFC FORMERR, in the wild others, too (RFC 8906 section 8). A
// BADVERS is in an OPT record of theirs, so that they know it.
func refusesEDNS(reply []byte) bool {
	rcode := reply[3] & 0xf
	return rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented
}

// exchangeOnce asks with wire as it is, but for the ID.
func (s *server) exchangeOnce(ctx context.Context, wire *dns.Msg) ([]byte, error) {
	wire.Id = dns.Id()
	if s.scheme == "https" {
		wire.Id = 0 // RFC 8484 section 4.1: so that caches can match
	}
	packed, err := wire.Pack()
	if err != nil {
		return nil, err
	}
	switch s.scheme {
	case "https":
		return s.overHTTPS(ctx, wire, packed)
	case "udp":
		return s.overUDP(ctx, wire, packed)
	}
	return s.overStream(ctx, wire, packed)
}

// matches says whether a packed message is the reply to q. A failure may come
// without the question, from a server that did not understand it.
func matches(q *dns.Msg, packed []byte) bool {
	r := new(dns.Msg)
	if len(packed) < headBytes || r.Unpack(packed) != nil {
		return false
	}
	failed := r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError
	return answers(q, r) || failed && r.Response && r.Id == q.Id && len(r.Question) == 0
}

// overUDP sends the query again each second; it goes over to TCP if UDP cannot
// be dialled or the reply is truncated (RFC 7766 section 5).
func (s *server) overUDP(ctx context.Context, q *dns.Msg, packed []byte) ([]byte, error) {
	conn, err := s.dial(ctx, "udp", s.address)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return s.overStream(ctx, q, packed)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	buf := make([]byte, dns.MaxMsgSize)
	for {
		if _, err := conn.Write(packed); err != nil {
			return nil, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(udpRetry))
		for {
			n, err := conn.Read(buf)
			if err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				if isTimeout(err) {
					break
				}
				return nil, err
			}
			if !matches(q, buf[:n]) {
				continue // forged or late: the right one may still come
			}
			reply := bytes.Clone(buf[:n])
			if reply[2]&0x02 != 0 {
				if whole, err := s.wholeAnswer(ctx, q, packed); err == nil {
					return whole, nil
				} // what fits is better than nothing
			}
			return reply, nil
		}
	}
}

// wholeAnswer asks over TCP what was too long for UDP. Some servers take no TCP.
func (s *server) wholeAnswer(ctx context.Context, q *dns.Msg, packed []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	return s.overStream(ctx, q, packed)
}

// overStream asks over TCP or TLS, on a connection that is kept if there is
// one. A kept connection that fails has probably been closed by the server
// while idle, so that a fresh one is tried.
func (s *server) overStream(ctx context.Context, q *dns.Msg, packed []byte) ([]byte, error) {
	for {
		conn, reused, err := s.connect(ctx)
		if err != nil {
			return nil, err
		}
		reply, err := askStream(ctx, conn, q, packed)
		if err == nil {
			s.keep(conn)
			return reply, nil
		}
		conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !reused {
			return nil, err
		}
	}
}

func askStream(ctx context.Context, conn net.Conn, q *dns.Msg, packed []byte) ([]byte, error) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if err := writeMessage(conn, packed); err != nil {
		return nil, err
	}
	for range 8 { // replies to questions given up, if the server mixes them in
		reply, err := readMessage(conn, nil)
		if err != nil {
			return nil, err
		}
		if matches(q, reply) {
			return reply, nil
		}
	}
	return nil, errors.New("the server answers other questions")
}

// connect takes an idle connection or dials.
func (s *server) connect(ctx context.Context) (conn net.Conn, reused bool, err error) {
	s.mu.Lock()
	for len(s.idle) > 0 {
		last := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		if time.Since(last.since) < connIdle {
			s.mu.Unlock()
			return last.Conn, true, nil
		}
		last.Close()
	}
	s.mu.Unlock()
	conn, err = s.dial(ctx, "tcp", s.address)
	if err != nil || s.scheme != "tls" {
		return conn, false, err
	}
	t := tls.Client(conn, s.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, false, fmt.Errorf("TLS: %w", err)
	}
	return t, false, nil
}

func (s *server) keep(conn net.Conn) {
	_ = conn.SetDeadline(time.Time{})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.idle) >= maxIdleConns {
		conn.Close()
		return
	}
	s.idle = append(s.idle, idleConn{conn, time.Now()})
}

// newHTTP makes the client of a DoH server: HTTP/2 over Dial, no proxy from
// the environment, no redirects.
func newHTTP(s *server) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return s.dial(ctx, "tcp", s.address)
			},
			TLSClientConfig:     s.tls,
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: clientTimeout,
			MaxIdleConnsPerHost: maxIdleConns,
			IdleConnTimeout:     90 * time.Second,
			// A connection that a network change has killed is noticed.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 3 * time.Second},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (s *server) overHTTPS(ctx context.Context, q *dns.Msg, packed []byte) ([]byte, error) {
	const mime = "application/dns-message"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", mime)
	req.Header.Set("Accept", mime)
	req.Header.Set("User-Agent", "")
	resp, err := s.http.Do(req)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			s.http.CloseIdleConnections() // perhaps the connection is dead
		}
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // without the address, which may hold an account's token
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != mime {
		return nil, fmt.Errorf("HTTP status %d, type %q: not a DNS server", resp.StatusCode, clipText(resp.Header.Get("Content-Type")))
	}
	reply, err := io.ReadAll(io.LimitReader(resp.Body, dns.MaxMsgSize+1))
	if err != nil {
		return nil, err
	}
	if len(reply) > dns.MaxMsgSize || !matches(q, reply) {
		return nil, errors.New("the answer is not one to the question")
	}
	return reply, nil
}

func clipText(s string) string { return s[:min(len(s), 60)] }

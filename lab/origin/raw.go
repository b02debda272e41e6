package origin

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
)

func (s *Server) serveTCP(a netip.Addr, port uint16, handle func(net.Conn)) error {
	ln, err := s.listen(a, port)
	if err != nil {
		return err
	}
	s.group.Go(func() error {
		for {
			c, err := ln.Accept()
			if err != nil {
				if s.closing() {
					return nil
				}
				return err
			}
			s.Counters.TCP.Add(1)
			if !s.track(c) {
				return nil
			}
			s.group.Go(func() error {
				defer s.untrack(c)
				handle(c)
				return nil
			})
		}
	})
	return nil
}

// track remembers c for Close; it refuses once the server is closing.
func (s *Server) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing() {
		c.Close()
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) untrack(c net.Conn) {
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

func echo(c net.Conn) { io.Copy(c, c) }

func discard(c net.Conn) { io.Copy(io.Discard, c) }

func chargen(c net.Conn) {
	buf := make([]byte, 64<<10)
	for stream := NewStream(0); ; {
		stream.Read(buf)
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// halfClose says nothing until the client has closed its side (RFC 9293
// section 3.6), then tells what it got, and closes.
func halfClose(c net.Conn) {
	h := sha256.New()
	if n, err := io.Copy(h, c); err == nil {
		fmt.Fprintf(c, "%d %x\n", n, h.Sum(nil))
	}
}

// reset answers the first bytes with an RST.
func reset(c net.Conn) {
	c.Read(make([]byte, 1))
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
}

func (s *Server) silent(net.Conn) { <-s.done }

func (s *Server) serveUDP(a netip.Addr, port uint16, reply bool) error {
	pc, err := s.opt.Network.ListenPacket("udp", net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	s.closers = append(s.closers, pc.Close)
	s.group.Go(func() error {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				if s.closing() {
					return nil
				}
				continue // an ICMP error of an earlier reply
			}
			s.Counters.Datagrams.Add(1)
			if reply {
				pc.WriteTo(buf[:n], from)
			}
		}
	})
	return nil
}

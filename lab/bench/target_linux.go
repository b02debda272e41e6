package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/atlanticproxy/atlanticproxy/lab"
)

// Where the target listens, on every address of the internet.
const (
	targetPort = 8000
	endPort    = 1081 // as a SOCKS5 proxy that is every target itself
)

// target is a lean HTTP/1.1 server: GET /N answers N bytes, POST swallows its
// body. The lab's origin makes every byte and checks what comes; this one costs
// as little as it can, so that the proxy is what is measured.
//
// On endPort it speaks SOCKS5 first and then answers in the target's place: for
// many connections, of which each costs it one descriptor and not seven.
type target struct {
	lns    []net.Listener
	filler []byte
	group  errgroup.Group

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu; nil once closed
}

func startTarget(l *lab.Lab) (*target, error) {
	t := &target{filler: bytes.Repeat([]byte("atlantic"), 32<<10), conns: map[net.Conn]struct{}{}}
	for _, port := range []int{targetPort, endPort} {
		ln, err := l.NS(lab.Internet).Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("target: %w", err), t.Close())
		}
		t.lns = append(t.lns, ln)
		t.group.Go(func() error { return t.accept(ln, port == endPort) })
	}
	return t, nil
}

func (t *target) accept(ln net.Listener, socks bool) error {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		if t.track(c) {
			t.group.Go(func() error { t.serve(c, socks); return nil })
		}
	}
}

// Close cuts every connection and waits. It is idempotent.
func (t *target) Close() error {
	for _, ln := range t.lns {
		ln.Close()
	}
	t.mu.Lock()
	for c := range t.conns {
		c.Close()
	}
	t.conns = nil
	t.mu.Unlock()
	return t.group.Wait()
}

func (t *target) track(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		c.Close()
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

// serve answers until either side ends; what a client does wrong ends it too.
func (t *target) serve(c net.Conn, socks bool) {
	defer func() {
		c.Close()
		t.mu.Lock()
		delete(t.conns, c)
		t.mu.Unlock()
	}()
	r := bufio.NewReaderSize(c, headBytes)
	if socks && acceptSOCKS(c, r) != nil {
		return
	}
	for {
		answer, body, last, err := readRequest(r)
		if err != nil {
			return
		}
		if discard(r, body) != nil || t.send(c, answer) != nil || last {
			return
		}
	}
}

// acceptSOCKS takes any request of RFC 1928 without authentication.
func acceptSOCKS(c net.Conn, r *bufio.Reader) error {
	head, err := r.Peek(2)
	if err != nil {
		return err
	}
	if _, err := r.Discard(2 + int(head[1])); err != nil {
		return err
	}
	if _, err := c.Write([]byte{5, 0}); err != nil {
		return err
	}
	if head, err = r.Peek(5); err != nil {
		return err
	}
	length := map[byte]int{1: 4, 3: 1 + int(head[4]), 4: 16}[head[3]]
	if head[1] != 1 || length == 0 {
		return fmt.Errorf("SOCKS5 command %d, address type %d", head[1], head[3])
	}
	if _, err := r.Discard(4 + length + 2); err != nil {
		return err
	}
	_, err = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return err
}

// send writes the head with what fits of the body, then the rest.
func (t *target) send(c net.Conn, n int64) error {
	head := []byte("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.FormatInt(n, 10) + "\r\n\r\n")
	piece := min(n, 32<<10)
	if _, err := c.Write(append(head, t.filler[:piece]...)); err != nil {
		return err
	}
	for n -= piece; n > 0; n -= piece {
		piece = min(n, int64(len(t.filler)))
		if _, err := c.Write(t.filler[:piece]); err != nil {
			return err
		}
	}
	return nil
}

// readRequest reads one head: how much to answer, how much body follows, and
// whether to close afterwards.
func readRequest(r *bufio.Reader) (answer, body int64, last bool, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, 0, false, err
	}
	words := bytes.Fields(line)
	if len(words) != 3 || len(words[1]) == 0 {
		return 0, 0, false, fmt.Errorf("request %q", line)
	}
	if string(words[0]) == "GET" {
		if answer, err = strconv.ParseInt(string(words[1][1:]), 10, 64); err != nil {
			return 0, 0, false, err
		}
	}
	for {
		line, err := r.ReadSlice('\n')
		if err != nil || len(line) <= 2 {
			return answer, body, last, err
		}
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(": "))
		switch string(name) {
		case "Content-Length":
			if body, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return 0, 0, false, err
			}
		case "Connection":
			last = string(value) == "close"
		}
	}
}

package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// headBytes is room for an answer's head.
const headBytes = 512

// requester is one connection of an app to a target of ours.
type requester struct {
	net.Conn
	r *bufio.Reader
}

func (a *app) open(ctx context.Context, target string) (*requester, error) {
	c, err := a.dial.Dial(ctx, target)
	if err != nil {
		return nil, err
	}
	return &requester{Conn: c, r: bufio.NewReaderSize(c, headBytes)}, nil
}

// get asks for n bytes and reads them all. first is when their head's first
// byte came. last has the target close the connection, and waits for that.
func (c *requester) get(n int64, last bool) (first time.Time, err error) {
	c.SetDeadline(time.Now().Add(patience))
	closing := ""
	if last {
		closing = "Connection: close\r\n"
	}
	if _, err := fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: t\r\n%s\r\n", n, closing); err != nil {
		return first, err
	}
	if _, err := c.r.Peek(1); err != nil {
		return first, err
	}
	first = time.Now()
	if err := readHead(c.r); err != nil {
		return first, err
	}
	if err := discard(c.r, n); err != nil {
		return first, err
	}
	if last {
		if _, err := c.r.ReadByte(); err != io.EOF {
			return first, fmt.Errorf("after the answer: %w", errors.Join(err, errors.New("no end")))
		}
	}
	return first, nil
}

// discard reads n bytes.
func discard(r *bufio.Reader, n int64) error {
	k, err := r.Discard(int(min(n, int64(r.Buffered()))))
	if n -= int64(k); err != nil || n == 0 {
		return err
	}
	// In pieces larger than r's buffer, which is empty now.
	buf := make([]byte, min(n, 64<<10))
	for n > 0 {
		k, err := r.Read(buf[:min(n, int64(len(buf)))])
		if n -= int64(k); err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// readHead skips the head of an answer with status 200.
func readHead(r *bufio.Reader) error {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) < 12 || string(line[9:12]) != "200" {
		return fmt.Errorf("answer %s", strconv.Quote(string(line)))
	}
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			return nil
		}
	}
}

// once is a request on a fresh connection, and how long its first byte took.
func (a *app) once(ctx context.Context, target string, n int64, leave bool) (time.Duration, error) {
	start := time.Now()
	c, err := a.open(ctx, target)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	first, err := c.get(n, !leave)
	return first.Sub(start), err
}

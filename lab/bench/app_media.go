package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// bulk is Kind Bulk. The bytes that count are those within Time, all streams
// having begun.
func (a *app) bulk(ctx context.Context, _ io.Reader) (Result, error) {
	t := newTally()
	conns := make([]*requester, a.Workers)
	for i := range conns {
		c, err := a.open(ctx, a.target(i))
		if err != nil {
			return Result{}, err
		}
		defer c.Close()
		if _, err := c.get(1, false); err != nil {
			return Result{}, err
		}
		conns[i] = c
	}
	var total atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for _, c := range conns {
		c.SetDeadline(start.Add(a.Time))
		wg.Go(func() {
			if err := a.pump(c, &total); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.note(0, 0, err)
			}
		})
	}
	wg.Wait()
	r := t.result(false)
	r.Count, r.Bytes, r.Seconds = a.Workers, total.Load(), time.Since(start).Seconds()
	return r, nil
}

// pump moves one endless answer or body, until the deadline.
func (a *app) pump(c *requester, total *atomic.Int64) error {
	const endless = 1 << 50
	buf := make([]byte, 256<<10)
	if a.Up {
		if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n", int64(endless)); err != nil {
			return err
		}
		for {
			n, err := c.Write(buf)
			total.Add(int64(n))
			if err != nil {
				return err
			}
		}
	}
	if _, err := fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: t\r\n\r\n", int64(endless)); err != nil {
		return err
	}
	for {
		n, err := c.Conn.Read(buf)
		total.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// call is Kind Call.
func (a *app) call(ctx context.Context, _ io.Reader) (Result, error) {
	c, err := new(net.Dialer).DialContext(ctx, "udp", a.target(0))
	if err != nil {
		return Result{}, err
	}
	defer c.Close()
	t := newTally()
	count := max(1, int(a.Rate*a.Time.Seconds()))
	sent := make([]atomic.Int64, count) // when, ns since t.started; 0 before
	var back atomic.Int64
	done := make(chan struct{})
	go func() { // ends with c; waited for below
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				continue // an ICMP error for an earlier datagram
			}
			if i := binary.BigEndian.Uint64(buf[:8]); n >= 8 && i < uint64(count) {
				if at := sent[i].Swap(0); at != 0 {
					t.note(time.Since(t.started)-time.Duration(at), int64(n), nil)
					back.Add(1)
				}
			}
		}
	}()
	payload := make([]byte, max(a.Bytes, 8))
	for i := range count {
		if !a.wait(ctx, t.started.Add(time.Duration(float64(i)/a.Rate*float64(time.Second)))) {
			break
		}
		binary.BigEndian.PutUint64(payload, uint64(i))
		sent[i].Store(int64(time.Since(t.started)))
		c.Write(payload) // what does not arrive is counted
	}
	for range 100 { // the last may take their time
		if back.Load() == int64(count) || !sleep(ctx, 10*time.Millisecond) {
			break
		}
	}
	c.Close()
	<-done
	r := t.result(a.Samples)
	r.Errors = count - r.Count
	return r, nil
}

// browse is Kind Browse.
func (a *app) browse(ctx context.Context, _ io.Reader) (Result, error) {
	t, end := newTally(), time.Now().Add(a.Time)
	rnd := rand.New(rand.NewPCG(a.Seed, 2))
	for time.Now().Before(end) {
		first := rnd.IntN(len(a.Targets))
		hosts := 2 + rnd.IntN(5)
		// The page itself, then all that it refers to.
		t.note(a.visit(ctx, a.target(first), 1))
		var wg sync.WaitGroup
		for i := range 5 + rnd.IntN(25) {
			target, requests := a.target(first+i%hosts), 1+rnd.IntN(3)
			wg.Go(func() { t.note(a.visit(ctx, target, requests)) })
		}
		wg.Wait()
		pause := 300*time.Millisecond + time.Duration(rnd.ExpFloat64()*float64(1200*time.Millisecond))
		if !sleep(ctx, min(pause, 5*time.Second, max(time.Until(end), 0))) {
			break
		}
	}
	return t.result(a.Samples), nil
}

// visit asks a few times on one fresh connection.
func (a *app) visit(ctx context.Context, target string, requests int) (time.Duration, int64, error) {
	start := time.Now()
	c, err := a.open(ctx, target)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	var took time.Duration
	for i := range requests {
		first, err := c.get(8<<10, i == requests-1)
		if err != nil {
			return 0, 0, err
		}
		if i == 0 {
			took = first.Sub(start)
		}
	}
	return took, int64(requests) * 8 << 10, nil
}

// play is Kind Play. The picture starts with the first segment; from then on a
// segment that comes after the picture has run out is a stall.
func (a *app) play(ctx context.Context, _ io.Reader) (Result, error) {
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: a.dial.tls, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	a.dial.tls.NextProtos = nil // HTTP/2, if the server will
	t, r := newTally(), Result{}
	length := time.Duration(a.SegmentSeconds) * time.Second
	begin := time.Now()
	var due time.Time // when the picture runs out
	for i := range a.Count {
		start := time.Now()
		n, err := fetch(ctx, client, fmt.Sprintf(a.Targets[0], i))
		t.note(time.Since(start), n, err)
		if err != nil {
			continue
		}
		now := time.Now()
		switch late := now.Sub(due); {
		case due.IsZero():
			r.Start, due = milliseconds(now.Sub(begin)), now
		case late > 0:
			r.Stalls++
			r.Stalled += milliseconds(late)
			due = now
		}
		due = due.Add(length)
		if ahead := time.Until(due); a.Ahead > 0 && ahead > a.Ahead && !sleep(ctx, ahead-a.Ahead) {
			break
		}
	}
	sum := t.result(a.Samples)
	sum.Stalls, sum.Stalled, sum.Start = r.Stalls, r.Stalled, r.Start
	return sum, nil
}

func fetch(ctx context.Context, client *http.Client, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && (res.StatusCode != http.StatusOK || n != res.ContentLength) {
		err = fmt.Errorf("%s: %s, %d of %d bytes", url, res.Status, n, res.ContentLength)
	}
	return n, err
}

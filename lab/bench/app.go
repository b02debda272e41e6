package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// fresh is Kind Fresh.
func (a *app) fresh(ctx context.Context, _ io.Reader) (Result, error) {
	if a.Time > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.Time)
		defer cancel()
	}
	t, begin := newTally(), time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range a.Workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if a.Count > 0 && i >= a.Count {
					return
				}
				at := begin
				if a.Rate > 0 {
					at = begin.Add(time.Duration(float64(i) / a.Rate * float64(time.Second)))
				}
				if !a.wait(ctx, at) {
					return
				}
				// What has begun is finished, whatever the time.
				d, err := a.once(context.WithoutCancel(ctx), a.target(i), a.Bytes, a.Leave)
				t.note(d, a.Bytes, err)
				if a.Gap > 0 && !sleep(ctx, a.Gap) {
					return
				}
			}
		})
	}
	wg.Wait()
	return t.result(a.Samples), nil
}

// probePatience is how long a proxy has to show that it carries early data.
const probePatience = 3 * time.Second

// probe is Kind Probe.
func (a *app) probe(ctx context.Context, _ io.Reader) (Result, error) {
	t := newTally()
	for i := range a.Count {
		start := time.Now()
		c, err := a.dial.DialEarly(ctx, a.target(i), fmt.Appendf(nil, "GET /%d HTTP/1.1\r\nHost: t\r\n\r\n", a.Bytes))
		if err == nil {
			c.SetDeadline(time.Now().Add(probePatience))
			r := bufio.NewReaderSize(c, headBytes)
			if err = readHead(r); err == nil {
				err = discard(r, a.Bytes)
			}
			c.Close()
		}
		t.note(time.Since(start), a.Bytes, err)
	}
	return t.result(a.Samples), nil
}

// loadSizes are the answers of a mixed load: mostly small.
func loadSizes() []int64 {
	return []int64{512, 2 << 10, 2 << 10, 8 << 10, 8 << 10, 32 << 10, 128 << 10}
}

// freshShare of a mixed load's requests come on a connection of their own.
const freshShare = 0.3

// load is Kind Load.
func (a *app) load(ctx context.Context, _ io.Reader) (Result, error) {
	t, end := newTally(), time.Now().Add(a.Time)
	rnd := rand.New(rand.NewPCG(a.Seed, 1))
	idle := make(chan *requester, 64)
	var wg sync.WaitGroup
	for i, at := 0, time.Now(); at.Before(end); i++ {
		if !a.wait(ctx, at) {
			break
		}
		if late := time.Now(); late.Sub(at) > 100*time.Millisecond {
			at = late // it was not our turn
		}
		n, fresh, target := loadSizes()[rnd.IntN(len(loadSizes()))], rnd.Float64() < freshShare, a.target(i)
		wg.Go(func() { t.note(a.request(ctx, target, n, fresh, idle)) })
		at = at.Add(time.Duration(float64(time.Second) / a.Rate))
	}
	wg.Wait()
	close(idle)
	for c := range idle {
		c.Close()
	}
	return t.result(a.Samples), nil
}

// request is one of a mixed load: until the last byte.
func (a *app) request(ctx context.Context, target string, n int64, fresh bool, idle chan *requester) (time.Duration, int64, error) {
	var c *requester
	var err error
	if !fresh {
		select {
		case c = <-idle:
		default:
		}
	}
	start := time.Now()
	if c == nil {
		if c, err = a.open(ctx, target); err != nil {
			return 0, 0, err
		}
	}
	if _, err = c.get(n, false); err != nil || fresh {
		c.Close()
	} else {
		select {
		case idle <- c:
		default:
			c.Close()
		}
	}
	return time.Since(start), n, err
}

// hold is Kind Hold.
func (a *app) hold(ctx context.Context, in io.Reader) (Result, error) {
	held := make([]*requester, a.Count)
	// each runs f for every connection, by Workers at once.
	each := func(f func(i int) (time.Duration, error)) Result {
		t := newTally()
		var next atomic.Int64
		var wg sync.WaitGroup
		for range a.Workers {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < a.Count; i = int(next.Add(1)) - 1 {
					d, err := f(i)
					t.note(d, 1, err)
				}
			})
		}
		wg.Wait()
		return t.result(a.Samples)
	}
	opened := each(func(i int) (time.Duration, error) {
		start := time.Now()
		c, err := a.open(ctx, a.target(i))
		if err != nil {
			return 0, err
		}
		held[i] = c
		first, err := c.get(1, false)
		return first.Sub(start), err
	})
	if err := a.out.Encode(opened); err != nil {
		return Result{}, err
	}
	io.Copy(io.Discard, in)
	return each(func(i int) (time.Duration, error) {
		if held[i] == nil {
			return 0, nil // it has been counted
		}
		defer held[i].Close()
		start := time.Now()
		first, err := held[i].get(1, false)
		return first.Sub(start), err
	}), nil
}

package demo

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// What an app does in each column.
const (
	pages           = 10
	requestsPerPage = 20 // of 8 KiB, over HTTPS, six at a time
	parallel        = 6
	objectBytes     = 8 << 10
	visits          = 20       // first requests to a new site
	downloadBytes   = 12 << 20 // one connection
	segmentSeconds  = 2
	segments        = 6
)

// app is a browser, or what the predecessor made of one.
type app struct {
	client *http.Client
	before func(context.Context) error // precedes each request; may be nil
}

// predecessor is the first AtlanticProxy's way, without its own overhead: the
// name is looked up synchronously for every request, and its user name changed
// all the time, so each request got a proxy connection of its own: TCP,
// CONNECT, TLS.
func predecessor(l *lab.Lab, p *proxy.Proxy) (*http.Transport, func(context.Context) error) {
	tr := l.Transport(lab.Client)
	tr.DisableKeepAlives = true
	tr.ForceAttemptHTTP2 = false
	u, _ := url.Parse(p.URL())
	tr.Proxy = http.ProxyURL(u)
	return tr, func(ctx context.Context) error {
		_, err := l.Resolve(ctx, lab.Client, "example.test")
		return err
	}
}

// get makes one request and returns how long it took, all of it: lookup,
// connections, handshakes, the answer's last byte.
func (a *app) get(ctx context.Context, url string, want int64) (time.Duration, error) {
	start := time.Now()
	if a.before != nil {
		if err := a.before(ctx); err != nil {
			return 0, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	res, err := a.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && (n != want || res.StatusCode != http.StatusOK) {
		err = fmt.Errorf("%s: %s, %d bytes, not %d", url, res.Status, n, want)
	}
	return time.Since(start), err
}

// browse loads pages of one site, one after the other: the page itself, then
// all that it refers to.
func (a *app) browse(ctx context.Context) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	object := func(ctx context.Context, seed int) error {
		d, err := a.get(ctx, fmt.Sprintf("https://example.test/bytes?n=%d&seed=%d", objectBytes, seed), objectBytes)
		mu.Lock()
		all = append(all, d)
		mu.Unlock()
		return err
	}
	for page := range pages {
		if err := object(ctx, page*100); err != nil {
			return nil, err
		}
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(parallel)
		for i := 1; i < requestsPerPage; i++ {
			g.Go(func() error { return object(ctx, page*100+i) })
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// firstVisits asks each of many sites once.
func (a *app) firstVisits(ctx context.Context) ([]time.Duration, error) {
	var all []time.Duration
	for i := range visits {
		d, err := a.get(ctx, fmt.Sprintf("https://site%d.example.test/bytes?n=%d", i, objectBytes), objectBytes)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// download returns Mbit/s of one big file.
func (a *app) download(ctx context.Context) (float64, error) {
	d, err := a.get(ctx, fmt.Sprintf("https://example.test/bytes?n=%d", downloadBytes), downloadBytes)
	return downloadBytes * 8 / d.Seconds() / 1e6, err
}

func tiers() []origin.Tier { return origin.Tiers() }

// playback is what a viewer of one quality saw.
type playback struct {
	start  time.Duration // until the first picture
	stalls int
	stall  time.Duration // in all
}

// play fetches segments one after the other and works out when a player that
// shows each as soon as it may would have had to wait.
func (a *app) play(ctx context.Context, t origin.Tier) (playback, error) {
	var p playback
	begin := time.Now()
	var due time.Time // when the picture runs out
	for i := range segments {
		url := fmt.Sprintf("https://example.test/hls/%s/%d.ts?s=%d", t.Name, i, segmentSeconds)
		if _, err := a.get(ctx, url, t.SegmentBytes(segmentSeconds)); err != nil {
			return p, err
		}
		now := time.Now()
		switch late := now.Sub(due); {
		case i == 0:
			p.start, due = now.Sub(begin), now
		case late > 0:
			p.stalls++
			p.stall += late
			due = now
		}
		due = due.Add(segmentSeconds * time.Second)
	}
	return p, nil
}

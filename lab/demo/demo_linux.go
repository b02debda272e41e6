package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
	"github.com/atlanticproxy/atlanticproxy/lab/wanem"
)

// The line between the client's router and the internet.
const (
	oneWay   = 10 * time.Millisecond
	downRate = 50e6 // bit/s
	upRate   = 20e6
)

// Options of Run.
type Options struct {
	Atlanticd string // the service's binary
	Out       io.Writer
	Progress  io.Writer // where to show progress; nil for none
}

// column is one way to the internet, measured.
type column struct {
	title  string
	client func() (*http.Transport, func(context.Context) error) // and what precedes each request
	via    *proxy.Proxy                                          // nil for direct
	result results
}

// Run builds the internet, measures and prints the table. It takes about a
// minute.
func Run(ctx context.Context, opt Options) error {
	show := func(string) {}
	if opt.Progress != nil {
		show = func(s string) { fmt.Fprintf(opt.Progress, "\r\033[K%s", s) }
		defer show("")
	}
	show("building a small internet ...")
	l, err := lab.New(lab.Options{Impair: true})
	if err != nil {
		return err
	}
	defer l.Close()
	connect, err := l.StartProxy(lab.ProxyOptions{Scheme: proxy.HTTP, Index: 0, Port: 8080})
	if err != nil {
		return err
	}
	socks, err := l.StartProxy(lab.ProxyOptions{Scheme: proxy.SOCKS5, Index: 1, Port: 1080})
	if err != nil {
		return err
	}
	l.WAN.Set(wanem.AtoB, wanem.Link{Delay: oneWay, Rate: upRate})
	l.WAN.Set(wanem.BtoA, wanem.Link{Delay: oneWay, Rate: downRate})

	browser := func() (*http.Transport, func(context.Context) error) { return l.Transport(lab.Client), nil }
	columns := []*column{
		{title: "no proxy", client: browser},
		{title: "predecessor", client: func() (*http.Transport, func(context.Context) error) { return predecessor(l, connect) }, via: connect},
		{title: "ours, CONNECT", client: browser, via: connect},
		{title: "ours, SOCKS5", client: browser, via: socks},
	}
	var s *service
	for i, c := range columns {
		switch i {
		case 2:
			show("starting atlanticd in the client's namespace ...")
			if s, err = startService(ctx, l, opt.Atlanticd, connect, socks); err != nil {
				return err
			}
			defer s.stop()
		case 3:
			show("switching the upstream ...")
			if err := s.use(ctx, "socks5"); err != nil {
				return err
			}
		}
		if err := c.measure(ctx, func(what string) { show(fmt.Sprintf("[%d/%d] %s: %s ...", i+1, len(columns), c.title, what)) }); err != nil {
			return fmt.Errorf("%s: %w", c.title, err)
		}
	}
	started := s.started
	if err := s.stop(); err != nil {
		return err
	}
	show("")
	report(opt.Out, columns, started)
	return nil
}

// measure fills in c.result.
func (c *column) measure(ctx context.Context, show func(string)) error {
	tr, before := c.client()
	defer tr.CloseIdleConnections()
	app := &app{client: &http.Client{Transport: tr, Timeout: 30 * time.Second}, before: before}
	accepted := func() int64 {
		if c.via == nil {
			return 0
		}
		return c.via.Counters.Accepted.Load()
	}
	show("browsing")
	start := accepted()
	latencies, err := app.browse(ctx)
	if err != nil {
		return err
	}
	c.result.latencies = latencies
	c.result.reuse = 1 - float64(accepted()-start)/float64(len(latencies))
	show("first visits")
	if c.result.first, err = app.firstVisits(ctx); err != nil {
		return err
	}
	show("download")
	if c.result.mbit, err = app.download(ctx); err != nil {
		return err
	}
	for _, t := range tiers() {
		show("playing " + t.Name)
		p, err := app.play(ctx, t)
		if err != nil {
			return errors.Join(fmt.Errorf("playing %s", t.Name), err)
		}
		c.result.plays = append(c.result.plays, p)
	}
	return nil
}

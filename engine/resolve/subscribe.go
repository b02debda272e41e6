package resolve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// Fetch reads a list. etag is what the last success gave, "" at first. body is
// nil if notModified; otherwise the caller closes it.
type Fetch func(ctx context.Context, url, etag string) (body io.ReadCloser, newETag string, notModified bool, err error)

// List is a subscription: proxies that a URL or a file holds, see [proxy.ParseList].
// What was read last stays in use for as long as nothing better can be read.
type List struct {
	Name   string
	URL    proxy.Secret  // given to Fetch; it may hold a token
	Scheme string        // of proxies without one; "" is http
	Every  time.Duration // between refreshes; 0 is one hour
	Fetch  Fetch         // FetchFile for a file
	// Settle is how long a reading that has lost most of the proxies must stay so
	// before it is believed; 0 is three times Every.
	Settle time.Duration
	// Save keeps the text of a list that was good, and Load gives it back after
	// a restart, until Fetch succeeds. Both may be nil. They are of this URL alone.
	Save func(text []byte) error
	Load func() ([]byte, error)
}

// Figures of lists.
const (
	listEvery   = time.Hour
	listMinimum = time.Minute      // between refreshes
	listRetry   = 30 * time.Second // after a failure, doubling
	firstRetry  = time.Second      // likewise, while nothing has been read
	lossFrom    = 5                // proxies; of fewer, any part may go at once
	listLimit   = time.Minute      // for one fetch
)

// subscription is a List at work.
type subscription struct {
	list   List
	r      *Resolver
	source int // index of its members in Resolver.fixed

	busy   chan struct{} // of one: held by the refresh under way
	loaded bool          // held by busy
	etag   string        // held by busy
	err    error         // of the last refresh; held by busy
	ended  time.Time     // when that was; held by busy
	shrunk time.Time     // since when readings have lost most proxies; zero: they have not; held by busy

	status atomic.Pointer[ListInfo]
	none   atomic.Bool // the last refresh has found that the place holds no list
}

// ListInfo is what people may see of a list.
type ListInfo struct {
	Name    string
	Proxies int
	Skipped []proxy.LineError
	Read    time.Time // when it was last read or found unchanged; zero: never
	Error   string    // of the last refresh; "" if it succeeded
}

func newSubscription(r *Resolver, l *List, source int) (*subscription, error) {
	s := &subscription{list: *l, r: r, source: source, busy: make(chan struct{}, 1)}
	if l.Fetch == nil || l.URL == "" {
		return nil, errors.New("nowhere to read it from")
	}
	if s.list.Scheme == "" {
		s.list.Scheme = "http"
	}
	if err := proxy.CheckScheme(s.list.Scheme); err != nil {
		return nil, err
	}
	if s.list.Every == 0 {
		s.list.Every = listEvery
	}
	s.list.Every = max(s.list.Every, listMinimum)
	if s.list.Settle == 0 {
		s.list.Settle = 3 * s.list.Every
	}
	s.status.Store(&ListInfo{Name: l.Name})
	return s, nil
}

// Refresh reads all lists now; of several calls at once, one does the work. If
// some cannot be read it says which; what was read of them before stays.
func (r *Resolver) Refresh(ctx context.Context) error {
	var errs []error
	for _, s := range r.lists {
		errs = append(errs, s.refresh(ctx))
	}
	return errors.Join(errs...)
}

// NoList says that a list's place was reached and does not hold it: to ask again
// soon is of no use.
type NoList struct{ Err error }

func (e *NoList) Error() string { return e.Err.Error() }
func (e *NoList) Unwrap() error { return e.Err }

// Ready waits until there is an endpoint to pick, for which Run reads the lists.
// It returns the reason if the places of all of them were reached and none holds
// one, or when ctx ends before: what cannot be reached is tried again.
func (r *Resolver) Ready(ctx context.Context) error {
	for {
		r.mu.Lock()
		read := r.read
		r.mu.Unlock()
		none := 0
		for _, s := range r.lists {
			if s.none.Load() {
				none++
			}
		}
		switch {
		case len(r.lists) == 0, len(r.snap.Load().members) > 0:
			return nil
		case none == len(r.lists):
			return r.Empty()
		}
		select {
		case <-read:
		case <-ctx.Done():
			return r.Empty()
		}
	}
}

// tellReady wakes who waits in Ready.
func (r *Resolver) tellReady() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.read)
	r.read = make(chan struct{})
}

// Empty is why there is nothing to pick: ErrEmpty with what went wrong.
func (r *Resolver) Empty() error {
	for _, s := range r.lists {
		if why := s.status.Load().Error; why != "" {
			return fmt.Errorf("%w: %s", ErrEmpty, why)
		}
	}
	return fmt.Errorf("%w: no list has been read yet", ErrEmpty)
}

// Lists shows the subscriptions.
func (r *Resolver) Lists() []ListInfo {
	var out []ListInfo
	for _, s := range r.lists {
		out = append(out, *s.status.Load())
	}
	return out
}

// run refreshes the list until ctx ends.
func (s *subscription) run(ctx context.Context) {
	failures := 0
	for {
		wait := s.list.Every
		if err := s.refresh(ctx); err != nil && ctx.Err() == nil {
			s.r.log.Warn("read a list of proxies", "err", err)
			retry := listRetry
			if s.status.Load().Proxies == 0 {
				retry = firstRetry
			}
			wait = min(wait, retry<<min(failures, 12))
			failures++
		} else {
			failures = 0
		}
		wait -= time.Duration(s.r.rand() % uint64(wait/10))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// refresh reads the list once. Whoever comes while that is under way gets its
// result.
func (s *subscription) refresh(ctx context.Context) error {
	asked := time.Now()
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.ended.After(asked) {
		return s.err
	}
	if !s.loaded {
		s.loaded = true
		s.restore()
		s.r.tellReady()
	}
	bounded, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	s.err = s.read(bounded)
	if s.err != nil {
		s.err = fmt.Errorf("list %q: %w", s.list.Name, s.err)
		info := *s.status.Load()
		info.Error = s.err.Error()
		s.status.Store(&info)
	}
	var none *NoList
	s.none.Store(errors.As(s.err, &none))
	s.ended = time.Now()
	s.r.tellReady()
	return s.err
}

// restore publishes what an earlier run has saved.
func (s *subscription) restore() {
	if s.list.Load == nil {
		return
	}
	text, err := s.list.Load()
	if err == nil && len(text) > 0 {
		err = s.use(text, time.Time{})
	}
	if err != nil {
		s.r.log.Warn("load the saved list of proxies", "list", s.list.Name, "err", err)
	}
}

func (s *subscription) read(ctx context.Context) error {
	body, etag, same, err := s.list.Fetch(ctx, s.list.URL.Reveal(), s.etag)
	if err != nil {
		return err
	}
	if same {
		info := *s.status.Load()
		info.Read, info.Error = time.Now(), ""
		s.status.Store(&info)
		return nil
	}
	if body == nil {
		return &NoList{errors.New("nothing was read")}
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, proxy.MaxListBytes+1))
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if err := s.use(text, time.Now()); err != nil {
		return &NoList{err}
	}
	s.etag = etag
	if s.list.Save != nil {
		if err := s.list.Save(text); err != nil {
			s.r.log.Warn("save a list of proxies", "list", s.list.Name, "err", err)
		}
	}
	return nil
}

// use parses a list, read at now, and puts its proxies in use. What is no list,
// or has lost most of the proxies at once, changes nothing.
func (s *subscription) use(text []byte, now time.Time) error {
	proxies, skipped, err := proxy.ParseList(text, s.list.Scheme)
	if err != nil {
		return err
	}
	if err := s.checkLoss(len(proxies), now); err != nil {
		return err
	}
	gateways := make([]Gateway, len(proxies))
	for i, p := range proxies {
		gateways[i] = Gateway{Scheme: p.Scheme, Host: p.Host, Port: p.Port, Username: p.Username, Password: p.Password}
	}
	s.r.replaceSource(s.source, s.list.Name, gateways)
	s.status.Store(&ListInfo{Name: s.list.Name, Proxies: len(gateways), Skipped: skipped, Read: now})
	return nil
}

// checkLoss refuses a reading with less than half of the proxies: a page cut
// short, or a vendor's trouble. It is believed once it has been so for a while.
func (s *subscription) checkLoss(proxies int, now time.Time) error {
	had := s.status.Load().Proxies
	if had < lossFrom || 2*proxies >= had {
		s.shrunk = time.Time{}
		return nil
	}
	if s.shrunk.IsZero() {
		s.shrunk = now
	}
	left := s.list.Settle - now.Sub(s.shrunk)
	if left <= 0 {
		s.shrunk = time.Time{}
		return nil
	}
	return fmt.Errorf("%d proxies are left of %d: believed if it is still so in %s", proxies, had, left.Round(time.Second))
}

// replaceSource puts a list's gateways in place of those before. A gateway that
// stays keeps its Endpoint, and with it warm connections and what is known.
func (r *Resolver) replaceSource(source int, name string, gateways []Gateway) {
	r.mu.Lock()
	type identity struct {
		g    Gateway
		pass string
	}
	of := func(scheme, host string, port uint16, user string, pass proxy.Secret) identity {
		return identity{Gateway{Scheme: scheme, Host: host, Port: port, Username: user}, pass.Reveal()}
	}
	old := make(map[identity]*member, len(r.fixed[source]))
	for _, m := range r.fixed[source] {
		old[of(m.scheme, m.host, m.port, m.static.Username, m.static.Password)] = m
	}
	members := make([]*member, 0, len(gateways))
	for _, g := range gateways {
		id := of(g.Scheme, g.Host, g.Port, g.Username, g.Password)
		m := old[id]
		if m == nil {
			m = r.fromGateway(g, name)
		}
		delete(old, id)
		members = append(members, m)
	}
	r.fixed[source] = members
	r.assemble()
	r.mu.Unlock()
	for _, m := range old {
		r.retire(m.static)
	}
	r.wakeUp()
}

// FetchFile is a Fetch of a local file, of which the etag is size and time.
func FetchFile(_ context.Context, path, etag string) (io.ReadCloser, string, bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", false, &NoList{err}
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	if err != nil {
		f.Close()
		return nil, "", false, &NoList{err}
	}
	tag := strconv.FormatInt(st.Size(), 10) + "-" + strconv.FormatInt(st.ModTime().UnixNano(), 10)
	if tag == etag {
		f.Close()
		return nil, tag, true, nil
	}
	return f, tag, false, nil
}

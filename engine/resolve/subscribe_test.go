package resolve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// site serves a list.
type site struct {
	mu    sync.Mutex
	text  string
	etag  string
	err   error
	slow  time.Duration
	calls int
	saved string
}

func (s *site) fetch(ctx context.Context, url, etag string) (io.ReadCloser, string, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.slow > 0 {
		select {
		case <-time.After(s.slow):
		case <-ctx.Done():
			return nil, "", false, ctx.Err()
		}
	}
	if s.err != nil {
		return nil, "", false, s.err
	}
	if s.etag != "" && s.etag == etag {
		return nil, etag, true, nil
	}
	return io.NopCloser(strings.NewReader(s.text)), s.etag, false, nil
}

func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func (s *site) set(text, etag string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text, s.etag, s.err = text, etag, err
}

func withList(t testing.TB, l *List, retired func(*Endpoint)) *Resolver {
	return newResolver(t, Options{Policy: Failover, Sources: []Source{{List: l}}, Retired: retired, Rand: numbered()})
}

func TestListIsNeverEmptiedByAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{text: "1.2.3.4:80\n5.6.7.8:80\n", etag: "1"}
		var retired []string
		r := withList(t, &List{Name: "l", URL: "https://x.example/l", Every: 10 * time.Minute, Fetch: s.fetch,
			Save: func(b []byte) error { s.saved = string(b); return nil }}, func(e *Endpoint) { retired = append(retired, e.Host) })
		if _, err := r.Pick(Key{}); !errors.Is(err, ErrEmpty) {
			t.Error(err)
		}
		running(t, r)
		first := mustPick(t, r, Key{})
		if first.Host != "1.2.3.4" || s.saved != s.text {
			t.Error(first, s.saved)
		}
		for _, bad := range []struct {
			text string
			err  error
		}{{"", nil}, {"<html>busy</html>", nil}, {"", errors.New("no route")}, {strings.Repeat("x", proxy.MaxListBytes+1), nil}} {
			s.set(bad.text, "bad", bad.err)
			time.Sleep(11 * time.Minute)
			synctest.Wait()
			if e := mustPick(t, r, Key{}); e != first || len(r.List()) != 2 {
				t.Fatalf("%.20q: %v of %d", bad.text, e, len(r.List()))
			}
			if in := r.Lists()[0]; in.Error == "" || in.Proxies != 2 {
				t.Errorf("%+v", in)
			}
		}
		if s.saved != "1.2.3.4:80\n5.6.7.8:80\n" {
			t.Error("a bad list was saved")
		}
		// The same proxy keeps its endpoint; the one that is gone is told of.
		report(r, first, Outcome{Kind: Success, Connect: time.Millisecond})
		s.set("9.9.9.9:80\n1.2.3.4:80", "2", nil)
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		list := r.List()
		if len(list) != 2 || list[0].Address != "9.9.9.9:80" || !list[1].Measured || strings.Join(retired, " ") != "5.6.7.8" {
			t.Errorf("%+v, retired %v", list, retired)
		}
		if e, err := r.Next(Key{}, []*Endpoint{mustPick(t, r, Key{})}); err != nil || e != first {
			t.Error("not the same endpoint:", e, err)
		}
		if in := r.Lists()[0]; in.Error != "" {
			t.Errorf("%+v", in)
		}
	})
}

func TestListIsAskedForByETag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{text: "1.2.3.4:80", etag: "a"}
		r := withList(t, &List{Name: "l", URL: "u", Fetch: s.fetch}, nil)
		running(t, r)
		read := r.Lists()[0].Read
		s.set("would not parse", "a", nil)
		time.Sleep(2 * time.Hour)
		if in := r.Lists()[0]; in.Error != "" || !in.Read.After(read) || s.count() < 2 || s.count() > 3 {
			t.Errorf("%+v after %d calls", in, s.count())
		}
	})
}

func TestSavedListServesUntilTheSiteAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{text: "5.6.7.8:80", slow: 10 * time.Second}
		r := withList(t, &List{Name: "l", URL: "u", Fetch: s.fetch, Load: func() ([]byte, error) { return []byte("1.2.3.4:80"), nil }}, nil)
		running(t, r)
		if e := mustPick(t, r, Key{}); e.Host != "1.2.3.4" {
			t.Error(e)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if e := mustPick(t, r, Key{}); e.Host != "5.6.7.8" {
			t.Error(e)
		}
	})
}

func TestManyRefreshesAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{text: "5.6.7.8:80", slow: time.Second}
		r := withList(t, &List{Name: "l", URL: "u", Fetch: s.fetch}, nil)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := r.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s.count() != 1 {
			t.Errorf("%d fetches", s.count())
		}
		s.set("", "", errors.New("down"))
		if err := r.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), `list "l": down`) {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := r.Refresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestFailedListsAreRetriedSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{err: errors.New("down")}
		r := withList(t, &List{Name: "l", URL: "u", Every: 24 * time.Hour, Fetch: s.fetch}, nil)
		running(t, r)
		time.Sleep(5 * time.Minute)
		if s.count() < 7 || s.count() > 10 { // after 1, 2, 4 … seconds
			t.Errorf("%d attempts in 5 minutes", s.count())
		}
		s.set("1.2.3.4:80", "", nil)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		mustPick(t, r, Key{})
	})
}

// TestListDoesNotShrinkAtOnce: a reading that has lost most of the proxies is
// believed when it stays so, and not before.
func TestListDoesNotShrinkAtOnce(t *testing.T) {
	many := ""
	for i := range 20 {
		many += fmt.Sprintf("10.0.0.%d:80\n", i)
	}
	synctest.Test(t, func(t *testing.T) {
		s := &site{text: many}
		r := withList(t, &List{Name: "l", URL: "u", Every: time.Hour, Fetch: s.fetch}, nil)
		running(t, r)
		const few = "10.0.0.1:80\n10.0.0.2:80\n"
		s.set(few, "", nil)
		time.Sleep(2 * time.Hour)
		if in := r.Lists()[0]; in.Proxies != 20 || !strings.Contains(in.Error, "2 proxies are left of 20") {
			t.Errorf("%+v", in)
		}
		s.set(many, "", nil) // it was an accident
		time.Sleep(time.Hour)
		if in := r.Lists()[0]; in.Proxies != 20 || in.Error != "" {
			t.Errorf("%+v", in)
		}
		s.set(few, "", nil)
		time.Sleep(2*time.Hour + 30*time.Minute)
		if in := r.Lists()[0]; in.Proxies != 20 {
			t.Errorf("what was an accident counts: %+v", in)
		}
		time.Sleep(3 * time.Hour)
		if in := r.Lists()[0]; in.Proxies != 2 || in.Error != "" || len(r.List()) != 2 {
			t.Errorf("it is so: %+v", in)
		}
	})
}

// TestReady waits for the first of the lists, and no longer than it has to.
func TestReady(t *testing.T) {
	refused := errors.New("no route")
	none := &NoList{errors.New("404")}
	for name, c := range map[string]struct {
		sites []*site
		after time.Duration // of the answer, about
		want  string        // of the error
	}{
		"slow":           {[]*site{{text: "1.2.3.4:80", slow: 5 * time.Second}}, 5 * time.Second, ""},
		"one of two":     {[]*site{{text: "1.2.3.4:80", slow: 40 * time.Second}, {text: "5.6.7.8:80", slow: time.Second}}, time.Second, ""},
		"no list there":  {[]*site{{err: none, slow: time.Second}}, time.Second, "404"},
		"a page":         {[]*site{{text: "<html>"}}, 0, "web page"},
		"none of two":    {[]*site{{err: none}, {text: "<html>", slow: 2 * time.Second}}, 2 * time.Second, "no endpoints"},
		"other may come": {[]*site{{err: none}, {err: refused}}, 20 * time.Second, "404"},
		"never":          {[]*site{{err: refused}}, 20 * time.Second, "no route"},
		"too slow":       {[]*site{{text: "1.2.3.4:80", slow: 50 * time.Second}}, 20 * time.Second, "no list has been read yet"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var o Options
				for i, s := range c.sites {
					o.Sources = append(o.Sources, Source{List: &List{Name: fmt.Sprint("l", i), URL: "u", Fetch: s.fetch}})
				}
				o.Rand = numbered()
				r := newResolver(t, o)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				begin := time.Now()
				running(t, r)
				err := r.Ready(ctx)
				if took := time.Since(begin); took < c.after || took > c.after+500*time.Millisecond {
					t.Errorf("after %v, want %v", took, c.after)
				}
				if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, ErrEmpty) || !strings.Contains(err.Error(), c.want)) {
					t.Error(err)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // the network comes up
		s := &site{err: refused}
		r := withList(t, &List{Name: "l", URL: "u", Fetch: s.fetch}, nil)
		time.AfterFunc(4*time.Second, func() { s.set("1.2.3.4:80", "", nil) })
		running(t, r)
		begin := time.Now()
		if err := r.Ready(t.Context()); err != nil || time.Since(begin) > 9*time.Second {
			t.Error(err, time.Since(begin))
		}
	})
}

func TestFetchFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list.txt")
	if err := os.WriteFile(path, []byte("1.2.3.4:80:bob:s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := withList(t, &List{Name: "l", URL: proxy.Secret(path), Scheme: "socks5", Fetch: FetchFile}, nil)
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := mustPick(t, r, Key{})
	if e.Scheme != "socks5" || e.Username != "bob" || e.Password.Reveal() != "s3cret" {
		t.Errorf("%v", e)
	}
	if _, _, same, err := FetchFile(t.Context(), path, r.lists[0].etag); !same || err != nil {
		t.Error(same, err)
	}
	if err := os.WriteFile(path, []byte("5.6.7.8:80:bob:s3cret2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := mustPick(t, r, Key{}); e.Host != "5.6.7.8" {
		t.Error(e)
	}
	if err := withList(t, &List{Name: "l", URL: proxy.Secret(t.TempDir()), Fetch: FetchFile}, nil).Refresh(t.Context()); err == nil {
		t.Error("a directory is no list")
	}
}

package engine

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/platform/platformtest"
)

// listSite serves a list, which may be changed.
func listSite(t *testing.T, h http.HandlerFunc) (url string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// onlyList has no upstream but a list at url.
func onlyList(url string) *config.Config {
	cfg := testConfig("")
	cfg.Providers = []config.Provider{{Name: "mine", Kind: "list", URL: proxy.Secret(url), Scheme: "http", Refresh: time.Minute, Policy: "latency", Pool: 1}}
	return cfg
}

// TestFirstStartWithOnlyAList: nothing has been read when the user asks for On.
func TestFirstStartWithOnlyAList(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	line := strings.TrimPrefix(p.url(), "http://") + "\n"
	var fail atomic.Int32
	slow := listSite(t, func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(300 * time.Millisecond)
		fmt.Fprint(w, line)
	})
	flaky := listSite(t, func(w http.ResponseWriter, _ *http.Request) {
		if fail.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, line)
	})
	long := filepath.Join(t.TempDir(), "long.txt")
	if err := os.WriteFile(long, []byte(line+strings.Repeat("# nothing\n", 30_000)+strings.Repeat(line, 30_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, url := range map[string]string{"slow": slow, "there at the third try": flaky, "60,000 lines": long} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, onlyList(url))
			if err := b.prefs(t, api.Prefs{On: ptr(true)}); err != nil {
				t.Fatal(err)
			}
			var st api.Status
			for deadline := time.Now().Add(30 * time.Second); st.State != api.On; time.Sleep(5 * time.Millisecond) {
				if st = b.Status(); st.Cause != "" || time.Now().After(deadline) {
					t.Fatalf("%s: %s", st.State, st.Cause)
				}
			}
		})
	}
}

// TestListThatCannotBeRead: the reason is shown where the upstream is, without
// the address, which holds a token.
func TestListThatCannotBeRead(t *testing.T) {
	const token = "t0ken-of-the-list"
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"gone":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "404 Not Found"},
		"a page":   {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<!doctype html><p>log in") }, "web page"},
		"nonsense": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello\nyou\n127.0.0.1:1\n") }, "2 of 3 lines are no proxies"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://%zz/?token="+token)
			w.WriteHeader(http.StatusFound)
		}, "redirects to nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, onlyList(listSite(t, c.answer)+"/get/"+token))
			if err := b.prefs(t, api.Prefs{On: ptr(true)}); err != nil {
				t.Fatal(err)
			}
			var st api.Status
			for deadline := time.Now().Add(30 * time.Second); st.Cause == "" && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				st = b.Status()
			}
			lists := b.Upstreams().Upstreams[0].Lists
			all := fmt.Sprintf("%+v %+v %s", st, lists, b.Config().TOML)
			if !strings.Contains(st.Cause, c.want) || len(lists) != 1 || !strings.Contains(lists[0].Error, c.want) {
				t.Errorf("%s\n%+v", st.Cause, lists)
			}
			if strings.Contains(all, token) {
				t.Errorf("the token shows in %s", all)
			}
		})
	}
}

// TestListStays: the good copy of a list stays in use, also after a restart, but
// only for the address that it came from.
func TestListStays(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	line := strings.TrimPrefix(p.url(), "http://") + "\n"
	var broken atomic.Bool
	var referer atomic.Value
	site := listSite(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case broken.Load():
			fmt.Fprint(w, "<html>busy")
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/one?x", http.StatusFound)
		default:
			referer.Store(r.Header.Get("Referer"))
			fmt.Fprint(w, line)
		}
	})
	b := newBench(t, onlyList(site+"/moved"))
	if err := b.prefs(t, api.Prefs{On: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	b.waitFor(t, api.On)
	if got := referer.Load(); got != "" {
		t.Errorf("the former address was told: %q", got)
	}
	broken.Store(true)
	if err := b.ups.balanced[0].resolver.Refresh(t.Context()); err == nil {
		t.Fatal("a page was taken for a list")
	}
	st := b.Status()
	if len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "web page, not a list of proxies; the list read at") {
		t.Errorf("%q", st.Warnings)
	}
	b.end(t)
	<-b.done

	b.start(t, onlyList(site+"/moved"))
	b.waitFor(t, api.On)
	for deadline := time.Now().Add(30 * time.Second); len(b.Status().Warnings) != 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q", b.Status().Warnings)
		}
	}
	if w := b.Status().Warnings[0]; !strings.Contains(w, "kept from the last run") {
		t.Error(w)
	}
	b.end(t)

	e, err := New(Options{Config: onlyList(site + "/other"), Host: platformtest.New(), StateDir: b.dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.ups.close()
	defer e.names.close()
	if err := e.ups.balanced[0].resolver.Refresh(t.Context()); err == nil || len(e.ups.balanced[0].resolver.List()) != 0 {
		t.Errorf("%v: the proxies of another address are in use: %+v", err, e.ups.balanced[0].resolver.List())
	}
}

package engine

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// locked is a buffer for several writers.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestSecretsStayOutOfAnswers: whatever is asked for, and wherever a secret stands
// in it, no answer, no status and no line of the log has it.
func TestSecretsStayOutOfAnswers(t *testing.T) {
	const secret = "Hunter2/Canary:9@x"
	p := newFakeProxy(t, "127.0.0.1:0", reply407)
	e := url.PathEscape(secret)
	at := strings.TrimPrefix(p.url(), "http://")
	cfg := testConfig("")
	cfg.Upstreams = []config.Upstream{{Name: "one", URL: p.url(), Username: "u", Password: proxy.Secret(secret)}}
	cfg.Providers = []config.Provider{{Name: "list", Kind: "list", URL: proxy.Secret("http://" + at + "/" + e + "?t=" + e), Refresh: 1 << 40}}
	cfg.DNS.Servers = []string{"https://192.0.2.1/" + e}
	var log locked
	b := newBench(t, cfg, func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	var said strings.Builder
	note := func(what string, v any) {
		text, _ := json.Marshal(v)
		fmt.Fprintf(&said, "%s: %v %s\n", what, v, text)
	}
	for _, choice := range []string{
		"one", "list", "http://u:" + e + "@" + at, "http://" + e + ":x@" + at, "socks5://u:" + e + "@127.0.0.1:1", "bob:" + secret, "bob:" + secret + "@host", "bob:" + secret + "@host:1080",
		"socks5://127.0.0.1:1080:bob:" + secret, "host:1080:bob:" + secret, "ftp://bob:" + e + "@h", "http://bob:" + secret + "@h o", "http://bob:" + e + "@h:0", "http://bob:" + e + "@256.1.1.1",
		"http://h/?" + e, secret, e + "://h", "http://u%zz:" + secret + "@h",
	} {
		for _, on := range []*bool{nil, ptr(true), ptr(false)} {
			if _, err := b.SetPrefs(t.Context(), api.Prefs{Upstream: &choice, On: on}); err != nil {
				note("prefs", err)
			}
			if on != nil && *on {
				until(t, "it is off again", func() bool { return b.Status().State == api.Off })
			}
			note("status", b.Status())
			note("upstreams", b.Upstreams())
		}
		_, err := b.NewSession(t.Context(), api.NewSession{Upstream: choice})
		note("session", err)
		why, err := b.Why(choice)
		if err != nil {
			note("why", err)
		} else if choice == "one" || choice == "list" {
			note("why", why)
		}
	}
	note("config", b.Config())
	note("sessions", b.Sessions())
	b.end(t)
	text := strings.ToLower(said.String() + log.String())
	for _, form := range []string{
		secret, "hunter2", e, url.QueryEscape(secret), hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte("u:" + secret)),
	} {
		if i := strings.Index(text, strings.ToLower(form)); i >= 0 {
			t.Errorf("%s shows in …%s…", form, text[max(i-200, 0):min(i+100, len(text))])
		}
	}
	if !strings.Contains(text, "upstream_auth") && !strings.Contains(text, "credentials") {
		t.Errorf("no upstream was tried:\n%s", text)
	}
}

package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/platformtest"
)

// What has worked once is never replaced by something else of its own accord.

// again starts b's engine anew with another configuration, on a machine that
// has been started anew too.
func (b *bench) again(t *testing.T, cfg *config.Config, prepare ...func(*Options)) {
	t.Helper()
	b.end(t)
	b.host, b.done = platformtest.New(), make(chan error, 1)
	b.start(t, cfg, prepare...)
}

// proven is an engine that is On by an upstream named "one".
func proven(t *testing.T) (b *bench, cfg *config.Config) {
	t.Helper()
	cfg = testConfig(newFakeProxy(t, "127.0.0.1:0", replyOK).url())
	b = newBench(t, cfg)
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	return b, cfg
}

// holds wants traffic to be caught and held, for good.
func (b *bench) holds(t *testing.T, code api.ErrorCode, words ...string) {
	t.Helper()
	b.waitFor(t, api.Blocked)
	until(t, "traffic is caught", func() bool { return b.Status().Protect.Blocking })
	b.cureNow(t)
	st := b.Status()
	if st.State != api.Blocked || !st.Protect.Blocking || st.Code != code || st.Hint == "" {
		t.Errorf("%s by %s, %+v, code %q, hint %q", st.State, st.Upstream.Name, st.Protect, st.Code, st.Hint)
	}
	for _, w := range words {
		if !strings.Contains(st.Cause, w) {
			t.Errorf("the cause does not say %q: %s", w, st.Cause)
		}
	}
}

// cureNow gives an engine every reason to look for a cure.
func (b *bench) cureNow(t *testing.T) {
	t.Helper()
	for range 3 {
		b.host.Change(b.host.Uplink())
		if err := b.prefs(t, api.Prefs{}); err != nil { // Run has taken the change in
			t.Fatal(err)
		}
	}
}

func TestProvenUpstreamIsGone(t *testing.T) {
	elsewhere := newFakeProxy(t, "127.0.0.1:0", replyOK).url()
	for name, change := range map[string]func(cfg *config.Config){
		"no file":                 func(cfg *config.Config) { cfg.Upstreams = nil },
		"renamed":                 func(cfg *config.Config) { cfg.Upstreams[0].Name = "uno" },
		"replaced":                func(cfg *config.Config) { cfg.Upstreams[0] = config.Upstream{Name: "two", URL: elsewhere} },
		"no proxy any more":       func(cfg *config.Config) { cfg.Upstreams[0].URL = "direct://" },
		"another without a proxy": func(cfg *config.Config) { cfg.Upstreams[0] = config.Upstream{Name: "lan", URL: "direct://"} },
		"behind one without a proxy": func(cfg *config.Config) {
			cfg.Upstreams = append([]config.Upstream{{Name: "lan", URL: "direct://"}}, cfg.Upstreams...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, cfg := proven(t)
			now := *cfg
			now.Upstreams = append([]config.Upstream(nil), cfg.Upstreams...)
			change(&now)
			b.again(t, &now)
			b.holds(t, api.ErrUnknownName, `"one"`)
			if err := b.prefs(t, api.Prefs{On: ptr(true)}); Explain(err).Code != api.ErrUnknownName {
				t.Errorf("up without a choice: %v", err)
			}
			b.again(t, &now)
			b.holds(t, api.ErrUnknownName, `"one"`) // it has not forgotten
			b.again(t, cfg)
			if st := b.waitFor(t, api.On); st.Upstream.Name != "one" {
				t.Errorf("put back, it is on by %s", st.Upstream.Name)
			}
			b.again(t, &now)
			b.holds(t, api.ErrUnknownName)
			if err := b.prefs(t, api.Prefs{Upstream: ptr("direct")}); err != nil {
				t.Fatal(err)
			}
			if st := b.waitFor(t, api.On); st.Upstream.Name != "direct" {
				t.Errorf("on by %s", st.Upstream.Name)
			}
			b.again(t, &now)
			b.waitFor(t, api.On)
		})
	}
}

// What the user may change without being asked.
func TestProvenUpstreamIsThere(t *testing.T) {
	elsewhere := newFakeProxy(t, "127.0.0.1:0", replyOK).url()
	for name, change := range map[string]func(cfg *config.Config){
		"elsewhere": func(cfg *config.Config) { cfg.Upstreams[0].URL = elsewhere },
		"one more": func(cfg *config.Config) {
			cfg.Upstreams = append(cfg.Upstreams, config.Upstream{Name: "two", URL: elsewhere})
		},
		"not the first any more": func(cfg *config.Config) {
			cfg.Upstreams = append([]config.Upstream{{Name: "two", URL: elsewhere}}, cfg.Upstreams...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, cfg := proven(t)
			change(cfg)
			b.again(t, cfg)
			b.waitFor(t, api.On)
		})
	}
}

// Before the first success nothing blocks.
func TestUnprovenNeverBlocks(t *testing.T) {
	b := kept(t, testConfig(""), intent{On: true, Upstream: "sold"})
	until(t, "it says why it is off", func() bool { return b.Status().Code == api.ErrUnknownName })
	if st := b.Status(); st.State != api.Off || st.Protect.Effect != "traffic leaves directly" {
		t.Errorf("%s, %+v", st.State, st.Protect)
	}
}

// Without any configuration that can be used, traffic is held and told why.
func TestUnusableConfiguration(t *testing.T) {
	b, _ := proven(t)
	wrong := &config.Error{File: "/etc/atlantic/atlantic.toml", Line: 3, Column: 5, Msg: "unknown key", Text: "pasword = 1", Hint: "did you mean"}
	b.again(t, nil, func(o *Options) { o.ConfigErr = wrong })
	b.holds(t, api.ErrConfig, "/etc/atlantic/atlantic.toml:3:5: unknown key")
	for _, p := range []api.Prefs{{On: ptr(true)}, {Upstream: ptr("direct")}, {On: ptr(true), Upstream: ptr("direct")}} {
		if err := b.prefs(t, p); Explain(err).Code != api.ErrConfig {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if st := b.Status(); strings.Contains(st.Cause+st.Hint, "pasword") {
		t.Errorf("it shows the line: %s", st.Cause)
	}
	b.prefs(t, api.Prefs{On: ptr(false)})
	b.waitFor(t, api.Off)
}

// The text of a configuration is kept once it has worked, and only then.
func TestLastGoodConfiguration(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", reply407)
	cfg := testConfig(p.url())
	cfg.Text = []byte("[[upstream]]\nname = \"one\"\nurl = \"" + p.url() + "\"\nusername = \"u\"\npassword = \"hunter2\"\n")
	b := newBench(t, cfg)
	b.prefs(t, api.Prefs{On: ptr(true)})
	until(t, "it has failed", func() bool { return b.Status().Code == api.ErrAuth && b.Status().State == api.Off })
	if _, err := LastGood(b.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what never worked is kept: %v", err)
	}
	p.answer(replyOK)
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	good, err := LastGood(b.dir)
	if err != nil || len(good.Upstreams) != 1 || good.Upstreams[0].Password.Reveal() != "hunter2" {
		t.Fatalf("kept: %+v, %v", good, err)
	}
	if info, err := os.Stat(filepath.Join(b.dir, goodFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	wrong := &config.Error{File: "atlantic.toml", Line: 2, Column: 1, Msg: "unknown key"}
	good.Listen.Proxy, good.TUN.Stack = "", "userspace"
	b.again(t, good, func(o *Options) { o.ConfigErr = wrong })
	if st := b.waitFor(t, api.On); st.Upstream.Name != "one" || !strings.Contains(strings.Join(st.Warnings, "\n"), "atlantic.toml:2:1: unknown key") {
		t.Errorf("on by %s, warnings %q", st.Upstream.Name, st.Warnings)
	}
}

// Blocked says what becomes of traffic as the machine has it, not as it should be.
func TestBlockedSaysWhatIsTheCase(t *testing.T) {
	taken := newFakeProxy(t, "127.0.0.1:0", replyOK)
	for name, tc := range map[string]struct {
		prepare func(b *bench, cfg *config.Config)
		code    api.ErrorCode
	}{
		"port taken": {func(_ *bench, cfg *config.Config) { cfg.Listen.Proxy = taken.l.Addr().String() }, api.ErrPortInUse},
		"no TUN":     {func(b *bench, _ *config.Config) { b.host.FailOpenTUN(platform.ErrNoTUN) }, api.ErrSystem},
		"no rules": {func(b *bench, _ *config.Config) {
			b.host.FailApply(errors.New("no"), errors.New("no"), errors.New("no"), errors.New("no"))
		}, api.ErrInternal},
	} {
		t.Run(name, func(t *testing.T) {
			b, cfg := proven(t)
			b.end(t)
			b.host, b.done = platformtest.New(), make(chan error, 1)
			tc.prepare(b, cfg)
			b.start(t, cfg)
			st := b.waitFor(t, api.Blocked)
			if st.Code != tc.code || st.Protect.Blocking || st.Protect.Effect != "no protection, traffic leaves directly" {
				t.Errorf("code %q, %+v", st.Code, st.Protect)
			}
			if w, err := b.Why("example.com"); err != nil || strings.Contains(w.Rule, "held") {
				t.Errorf("why: %q, %v", w.Rule, err)
			}
			b.host.FailOpenTUN(nil)
			for b.host.Apply(t.Context(), b.host.Current()) != nil { // use up the failures that wait
			}
		})
	}
	t.Run("the rules go while it is blocked", func(t *testing.T) {
		b, _ := proven(t)
		b.observe(b.ups.current(), &upstream.Error{Kind: upstream.Auth, Err: errors.New("407")})
		if st := b.waitFor(t, api.Blocked); !st.Protect.Blocking || st.Protect.Effect != "traffic is held back" {
			t.Errorf("%+v", st.Protect)
		}
		if err := b.host.Apply(t.Context(), platform.NetConfig{}); err != nil { // behind the engine's back
			t.Fatal(err)
		}
		if st := b.Status(); st.Protect.Blocking || strings.Contains(st.Protect.Effect, "held") {
			t.Errorf("%+v", st.Protect)
		}
	})
}

// On says if traffic gets past us all the same.
func TestOnSaysWhatLeaves(t *testing.T) {
	b, _ := proven(t)
	if st := b.Status(); len(st.Warnings) != 0 {
		t.Errorf("warnings: %q", st.Warnings)
	}
	if err := b.host.Apply(t.Context(), platform.NetConfig{}); err != nil { // behind the engine's back
		t.Fatal(err)
	}
	if st := b.Status(); len(st.Warnings) != 1 || st.Warnings[0] != "not all traffic is taken in: packets leave by eth0" {
		t.Errorf("warnings: %q", st.Warnings)
	}
}

// A change that the disk does not take is in force, and told.
func TestUnkept(t *testing.T) {
	b, _ := proven(t)
	moved := b.dir + ".away"
	if err := os.Rename(b.dir, moved); err != nil {
		t.Fatal(err)
	}
	for _, p := range []api.Prefs{{Upstream: ptr("direct")}, {On: ptr(false)}, {On: ptr(true)}} {
		st, err := b.SetPrefs(t.Context(), p)
		if err != nil || !strings.Contains(st.Unkept, intentFile) {
			t.Errorf("%+v: %v, unkept %q", p, err, st.Unkept)
		}
	}
	if err := os.Rename(moved, b.dir); err != nil {
		t.Fatal(err)
	}
	st, err := b.SetPrefs(t.Context(), api.Prefs{Upstream: ptr("one")})
	if err != nil || st.Unkept != "" {
		t.Errorf("once the disk works: %v, unkept %q", err, st.Unkept)
	}
	if in, err := loadIntent(b.dir); err != nil || in.Upstream != "one" || !in.On {
		t.Errorf("kept: %+v, %v", in, err)
	}
}

// An intent of a version before that knew no upstream is believed.
func TestIntentOfBefore(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := kept(t, testConfig(p.url()), intent{}, func(b *bench) {
		if err := os.WriteFile(filepath.Join(b.dir, intentFile), []byte(`{"version":1,"on":true,"upstream":"","proven":true}`), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	b.waitFor(t, api.On)
	if in, err := loadIntent(b.dir); err != nil || in.By != (exit{Name: "one"}) {
		t.Errorf("kept: %+v, %v", in, err)
	}
}

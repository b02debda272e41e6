package engine

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/platformtest"
)

// What happens while something else is under way.

// silence lets p accept connections and answer none until answer is called.
func (p *fakeProxy) silence() { <-p.reply }

func (p *fakeProxy) speak(reply string) { p.reply <- reply }

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(8 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// kept starts an engine on a machine where in was kept.
func kept(t *testing.T, cfg *config.Config, in intent, prepare ...func(*bench)) *bench {
	t.Helper()
	b := &bench{host: platformtest.New(), dir: t.TempDir(), done: make(chan error, 1)}
	if err := saveIntent(b.dir, in); err != nil {
		t.Fatal(err)
	}
	for _, f := range prepare {
		f(b)
	}
	b.start(t, cfg)
	return b
}

func TestTUNDiesDuringStart(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	p.silence()
	b := kept(t, testConfig(p.url()), intent{On: true, Proven: true})
	until(t, "the TUN is up", func() bool { return b.host.Current().TUN != "" })
	b.host.BreakTUN()
	time.Sleep(20 * time.Millisecond) // its death is told before the upstream answers
	p.speak(replyOK)
	until(t, "another TUN is up", func() bool { return len(b.host.Opened()) == 2 })
	b.waitFor(t, api.On)
	if n := b.host.OpenTUNs(); n != 1 {
		t.Errorf("On with %d TUNs", n)
	}
}

func TestUseWhileStarting(t *testing.T) {
	one, two := newFakeProxy(t, "127.0.0.1:0", replyOK), newFakeProxy(t, "127.0.0.1:0", replyOK)
	cfg := testConfig(one.url())
	cfg.Upstreams = append(cfg.Upstreams, config.Upstream{Name: "two", URL: two.url()})
	up := func(t *testing.T) *bench {
		one.silence()
		b := newBench(t, cfg)
		b.prefs(t, api.Prefs{On: ptr(true)})
		b.waitFor(t, api.Starting)
		if err := b.prefs(t, api.Prefs{Upstream: ptr("two")}); err != nil {
			t.Fatal(err)
		}
		return b
	}
	t.Run("the former one fails", func(t *testing.T) {
		b := up(t)
		one.speak(reply407)
		if st := b.waitFor(t, api.On); st.Upstream.Name != "two" || st.Cause != "" {
			t.Errorf("%+v", st)
		}
	})
	t.Run("the new one fails", func(t *testing.T) {
		two.answer(reply407)
		b := up(t)
		one.speak(replyOK)
		until(t, "it is off", func() bool { st := b.Status(); return st.State == api.Off && st.Code == api.ErrAuth })
		if n := len(b.host.Opened()); n != 0 {
			t.Errorf("%d TUNs were opened for an upstream that was never asked", n)
		}
	})
}

func TestSwitchIsReplacedByALaterOne(t *testing.T) {
	one, two := newFakeProxy(t, "127.0.0.1:0", replyOK), newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(one.url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	slow := newFakeProxy(t, "127.0.0.1:0", replyOK)
	slow.silence()
	first := make(chan error, 1)
	go func() {
		_, err := b.SetPrefs(t.Context(), api.Prefs{Upstream: ptr(slow.url())})
		first <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := b.prefs(t, api.Prefs{Upstream: ptr(two.url())}); err != nil {
		t.Fatal(err)
	}
	slow.speak(replyOK)
	var ae *api.Error
	if err := <-first; !errors.As(err, &ae) || ae.Code != api.ErrBadRequest {
		t.Errorf("the earlier call got %v", err)
	}
	if got := b.Upstreams().Choice; got != two.url() {
		t.Errorf("in use: %s", got)
	}
}

func TestFailureOfTheFormerUpstreamDoesNotCount(t *testing.T) {
	one, two := newFakeProxy(t, "127.0.0.1:0", replyOK), newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(one.url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	since := b.Status().Since
	one.silence()
	u := b.ups.current()
	one.speak("garbage\r\n\r\n")
	err := u.Check(t.Context())
	one.silence()
	b.observe(u, err) // Run asks it, and waits
	time.Sleep(20 * time.Millisecond)
	if err := b.prefs(t, api.Prefs{Upstream: ptr(two.url())}); err != nil {
		t.Fatal(err)
	}
	one.speak(reply407)
	time.Sleep(100 * time.Millisecond)
	if st := b.Status(); st.State != api.On || st.Since != since {
		t.Errorf("%s since %v (%s)", st.State, st.Since, st.Cause)
	}
}

// A choice that has gone from the configuration is not replaced in silence: the
// first upstream may be none at all.
func TestChosenUpstreamIsGone(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := kept(t, testConfig(p.url()), intent{On: true, Proven: true, Upstream: "sold"})
	st := b.waitFor(t, api.Blocked)
	if st.Code != api.ErrUnknownName || !strings.Contains(st.Cause, "sold") || st.Hint == "" {
		t.Errorf("%+v", st)
	}
	until(t, "traffic is caught", func() bool { return b.host.Current().TUN != "" && b.held.Load() })
	time.Sleep(700 * time.Millisecond) // a retry would have come
	if st := b.Status(); st.State != api.Blocked {
		t.Errorf("opened of itself: %s", st.State)
	}
	b.prefs(t, api.Prefs{Upstream: ptr("one"), On: ptr(true)})
	b.waitFor(t, api.On)
}

func TestUnreadableIntentKeepsTrying(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := kept(t, testConfig(p.url()), intent{}, func(b *bench) {
		if err := os.WriteFile(filepath.Join(b.dir, "intent.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		b.host.FailOpenTUN(errors.New("busy"))
	})
	b.waitFor(t, api.Blocked)
	time.Sleep(50 * time.Millisecond)
	b.host.FailOpenTUN(nil)
	until(t, "traffic is caught", func() bool { return b.host.Current().TUN != "" })
	if st := b.Status(); st.State != api.Blocked || st.Code != api.ErrState {
		t.Errorf("%+v", st)
	}
}

func TestRestoreFailureIsTold(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(p.url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	b.host.FailApply(errors.New("netlink says no"))
	b.prefs(t, api.Prefs{On: ptr(false)})
	if st := b.waitFor(t, api.Off); !strings.Contains(st.Cause, "netlink says no") || st.Hint == "" {
		t.Errorf("%+v", st)
	}
}

// The end of the service tells it too, while watchers are there to hear it.
func TestRestoreFailureIsToldAtTheEnd(t *testing.T) {
	b := newBench(t, testConfig(newFakeProxy(t, "127.0.0.1:0", replyOK).url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	ch := b.Watch(t.Context())
	b.host.FailApply(errors.New("netlink says no"))
	b.Shutdown()
	var last api.Status
	for ev := range ch {
		last = *ev.Status
	}
	if last.State != api.Off || !strings.Contains(last.Cause, "netlink says no") || !strings.Contains(last.Hint, "rescue") {
		t.Errorf("%s, %q, %q", last.State, last.Cause, last.Hint)
	}
	if err := <-b.done; err == nil {
		t.Error("Run says that all is well")
	}
	b.done <- b.host.Apply(t.Context(), platform.NetConfig{}) // as `atlantic rescue` does
}

// dnsProxy takes every tunnel to be one to a DNS server, plays that, and counts
// the queries.
func dnsProxy(t *testing.T) (url string, queries *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	queries = new(atomic.Int32)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				br := bufio.NewReader(c)
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				io.WriteString(c, replyOK)
				for {
					var n [2]byte
					if _, err := io.ReadFull(br, n[:]); err != nil {
						return
					}
					q := make([]byte, int(n[0])<<8|int(n[1]))
					if _, err := io.ReadFull(br, q); err != nil {
						return
					}
					queries.Add(1)
					q[2] |= 0x80 // a response without answers
					c.Write(append(n[:], q...))
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return "http://" + l.Addr().String(), queries
}

// After a switch no query leaves by the former upstream, although a connection
// to the DNS server is open there.
func TestQueriesFollowTheSwitch(t *testing.T) {
	one, asked1 := dnsProxy(t)
	two, asked2 := dnsProxy(t)
	cfg := testConfig(one)
	cfg.DNS.Servers = []string{"tcp://192.0.2.53"}
	b := newBench(t, cfg)
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	query := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'x', 0, 0, 16, 0, 1} // TXT x.
	ask := func() {
		t.Helper()
		if _, err := b.names.exchange(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	ask()
	if err := b.prefs(t, api.Prefs{Upstream: &two}); err != nil {
		t.Fatal(err)
	}
	ask()
	if a, b := asked1.Load(), asked2.Load(); a != 2 || b != 1 {
		t.Errorf("%d queries by the former upstream, %d by the new one; want 2 and 1", a, b)
	}
}

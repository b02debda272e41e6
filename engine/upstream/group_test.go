package upstream

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

// recorder is a CONNECT proxy that knows who asked, and may have an opinion.
type recorder struct {
	opinion func(user string) (status string) // "" is 200
	mu      sync.Mutex
	users   []string
	conns   atomic.Int32
	early   atomic.Int32
}

func (p *recorder) handle(c *net.TCPConn) {
	p.conns.Add(1)
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	if br.Buffered() > 0 {
		p.early.Add(1)
	}
	auth, _ := strings.CutPrefix(req.Header.Get("Proxy-Authorization"), "Basic ")
	plain, _ := base64.StdEncoding.DecodeString(auth)
	user, _, _ := strings.Cut(string(plain), ":")
	p.mu.Lock()
	p.users = append(p.users, user)
	p.mu.Unlock()
	if p.opinion != nil {
		if status := p.opinion(user); status != "" {
			_, _ = io.WriteString(c, "HTTP/1.1 "+status+"\r\nX-Error: because\r\nContent-Length: 0\r\n\r\n")
			return
		}
	}
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	_, _ = io.Copy(c, br)
	_ = c.CloseWrite()
}

func (p *recorder) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.users...)
}

func gateAt(ap netip.AddrPort, scheme, user string) resolve.Gateway {
	g := resolve.Gateway{Name: user, Scheme: scheme, Host: ap.Addr().String(), Port: ap.Port(), Username: user}
	if user != "" {
		g.Password = "p"
	}
	return g
}

// groupOf makes a group that fails over in the order given.
func groupOf(t testing.TB, gs ...resolve.Gateway) (*Upstream, *resolve.Resolver) {
	t.Helper()
	return groupFrom(t, resolve.Options{Name: "g", Policy: resolve.Failover, Sources: []resolve.Source{{Gateways: gs}}})
}

func groupFrom(t testing.TB, o resolve.Options) (*Upstream, *resolve.Resolver) {
	t.Helper()
	r, err := resolve.New(o)
	if err != nil {
		t.Fatal(err)
	}
	u, err := NewGroup("g", r, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u, r
}

func closedPort(t testing.TB) netip.AddrPort {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return flow.AddrPortOf(ln.Addr())
}

func info(t testing.TB, r *resolve.Resolver, name string) resolve.Info {
	t.Helper()
	for _, in := range r.List() {
		if in.Name == name {
			return in
		}
	}
	t.Fatalf("no %q in %+v", name, r.List())
	return resolve.Info{}
}

func TestGroupFailsOver(t *testing.T) {
	good := &recorder{}
	u, r := groupOf(t, gateAt(closedPort(t), "http", "dead"), gateAt(serve(t, good.handle), "http", "good"))
	begin := time.Now()
	tr := flowOn(t, u, "x")
	if tr.Endpoint != "good" || time.Since(begin) > 2*time.Second {
		t.Errorf("by %q after %v", tr.Endpoint, time.Since(begin))
	}
	if in := info(t, r, "dead"); in.Failures != 1 || in.Pending != 0 || in.Error == "" {
		t.Errorf("%+v", in)
	}
	if in := info(t, r, "good"); in.Failures != 0 || in.Pending != 0 || in.Dials != 1 {
		t.Errorf("%+v", in)
	}
	if err := u.Check(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
	if s := u.Stats(); s.Flows != 1 || s.Failures != 0 {
		t.Errorf("%+v", s)
	}
	if u.Packets() != nil {
		t.Error("CONNECT carries UDP")
	}
}

func TestGroupHedges(t *testing.T) {
	t.Parallel()
	hole := serve(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	good := &recorder{}
	u, r := groupOf(t, gateAt(hole, "http", "hole"), gateAt(serve(t, good.handle), "http", "good"))
	begin := time.Now()
	if tr := flowOn(t, u, "POST x"); tr.Endpoint != "good" || tr.Wait < 100*time.Millisecond {
		t.Errorf("%+v", tr)
	}
	if d := time.Since(begin); d > 8*time.Second {
		t.Errorf("took %v", d)
	}
	if in := info(t, r, "hole"); in.Pending != 0 {
		t.Errorf("%+v", in)
	}
}

// TestGroupAllDead: the app is told, and why.
func TestGroupAllDead(t *testing.T) {
	u, _ := groupOf(t, gateAt(closedPort(t), "http", "a"), gateAt(closedPort(t), "socks5", "b"))
	_, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "x.example", Port: 80}, nil)
	var e *Error
	if !errors.As(err, &e) || e.Kind != Refused || e.Upstream != "g" || !strings.Contains(err.Error(), "b: ") {
		t.Errorf("%v", err)
	}
	if err := u.Check(within(t, 5*time.Second)); err == nil {
		t.Error("all are dead, and the check says nothing")
	}
	none, _ := groupOf(t)
	if _, err := none.DialStream(within(t, time.Second), flow.Target{Name: "x.example", Port: 80}, nil); !errors.As(err, &e) || e.Kind != Unreachable {
		t.Errorf("%v", err)
	}
}

func provider(t testing.TB, errorMap string) *resolve.Template {
	t.Helper()
	tpl, err := resolve.ParseTemplate("test.toml", []byte(`name = "Test"
username = "{user}[-session-{session}]"
password = "{password}"
[[gateway]]
scheme = "http"
[session]
chars = "lower-alnum"
length = 8
ttl_unit = "minutes"
ttl_min = "1m"
ttl_max = "24h"
[errors]
headers = ["X-Error"]
`+errorMap))
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

func account(t testing.TB, ap netip.AddrPort, tpl *resolve.Template, mode string) *resolve.Account {
	t.Helper()
	m, err := resolve.ParseSession(mode)
	if err != nil {
		t.Fatal(err)
	}
	return &resolve.Account{Name: "acc", Template: tpl, Username: "bob", Password: "pw", Session: m, Host: ap.Addr().String(), Port: ap.Port()}
}

// TestIdentitiesShareConnections: each flow is somebody else, and none waits
// for a handshake.
func TestIdentitiesShareConnections(t *testing.T) {
	p := &recorder{}
	acc := account(t, serve(t, p.handle), provider(t, ""), "per-connection")
	u, _ := groupFrom(t, resolve.Options{Name: "g", Sources: []resolve.Source{{Account: acc}}})
	flowOn(t, u, "x")
	settle(t, u, coldStock)
	for range 5 {
		if tr := flowOn(t, u, "x"); !tr.Warm || !tr.Reused || tr.Pick == 0 {
			t.Errorf("%+v", tr)
		}
	}
	seen := map[string]bool{}
	for _, user := range p.asked() {
		if seen[user] || !strings.HasPrefix(user, "bob-session-") {
			t.Errorf("%q of %q", user, p.asked())
		}
		seen[user] = true
	}
	if g := u.streams.(*group); len(g.members.byEP) > 1 || len(g.members.gates) != 1 {
		t.Errorf("%d members are kept", len(g.members.byEP))
	}
}

// TestProviderAnswers: an exit that has ended is replaced by another identity
// at once, a provider that does not carry a host is not asked again, and an
// account that is not accepted is not tried on.
func TestProviderAnswers(t *testing.T) {
	const rules = `
[[errors.map]]
status = [502]
action = "new-session"
meaning = "the exit has gone"
[[errors.map]]
status = [403]
action = "avoid"
meaning = "not carried"
[[errors.map]]
status = [407]
action = "stop"
meaning = "the plan is used up"
hint = "pay"
`
	var answer atomic.Pointer[string]
	var bad atomic.Pointer[string] // user
	p := &recorder{opinion: func(user string) string {
		if b := bad.Load(); b != nil && *b != user {
			return ""
		}
		return *answer.Load()
	}}
	set := func(status string, user *string) { answer.Store(&status); bad.Store(user) }
	set("", nil)
	acc := account(t, serve(t, p.handle), provider(t, rules), "sticky-10m")
	u, _ := groupFrom(t, resolve.Options{Name: "g", Sources: []resolve.Source{{Account: acc}}})
	flowOn(t, u, "x")
	flowOn(t, u, "x")
	users := p.asked()
	if users[0] != users[1] {
		t.Fatalf("a sticky identity has changed: %q", users)
	}
	set("502 Bad Gateway", &users[0])
	flowOn(t, u, "POST x")
	if users = p.asked(); len(users) != 4 || users[2] != users[0] || users[3] == users[0] {
		t.Errorf("asked by %q", users)
	}

	dial := func(host string) *Error {
		_, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: host, Port: 80}, nil)
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("%s: %v", host, err)
		}
		return e
	}
	set("403 Forbidden", nil)
	if e := dial("blocked.example"); e.Kind != Target || e.Reason != flow.Forbidden || !strings.Contains(e.Error(), "not carried (403): because") {
		t.Errorf("%v", e)
	}
	n := len(p.asked())
	if e := dial("blocked.example"); e.Kind != Target || len(p.asked()) != n {
		t.Errorf("asked again: %v", e)
	}
	set("407 Proxy Authentication Required", nil)
	if e := dial("other.example"); e.Kind != Auth || e.Hint != "pay" || len(p.asked()) != n+1 {
		t.Errorf("%v, asked %d times", e, len(p.asked())-n)
	}
}

// TestGroupTargetFault: a target that cannot be reached is asked for once.
func TestGroupTargetFault(t *testing.T) {
	p, q := &recorder{opinion: func(string) string { return "502 Bad Gateway" }}, &recorder{}
	u, _ := groupOf(t, gateAt(serve(t, p.handle), "http", "a"), gateAt(serve(t, q.handle), "http", "b"))
	_, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "x.example", Port: 80}, nil)
	var e *Error
	if !errors.As(err, &e) || e.Kind != Target || len(p.asked()) != 1 || len(q.asked()) != 0 {
		t.Errorf("%v, asked %d and %d times", err, len(p.asked()), len(q.asked()))
	}
}

// TestGroupEarly: the verdict is the gateway's, whoever asks.
func TestGroupEarly(t *testing.T) {
	var h, early atomic.Int32
	proxy := serve(t, habitual(&h, webServer(t), &early))
	var told atomic.Pointer[Spec]
	r, err := resolve.New(resolve.Options{Name: "g", Sources: []resolve.Source{{Gateways: []resolve.Gateway{gateAt(proxy, "http", "u1"), gateAt(proxy, "http", "u2")}}}, Policy: resolve.Weighted})
	if err != nil {
		t.Fatal(err)
	}
	u, err := NewGroup("g", r, Options{EarlyChanged: func(u *Upstream) { s := u.Spec(); told.Store(&s) }})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	target := flow.Target{Name: "a.example", Port: 80}
	if u.WantsEarly(target) {
		t.Error("wants early before anything has worked")
	}
	get(t, u)
	eventually(t, "no verdict", func() bool { return told.Load() != nil })
	if s := told.Load(); u.Early() != EarlyCarries || s.Username != "" || s.Port != proxy.Port() {
		t.Fatalf("%v, told of %v", u.Early(), s)
	}
	for range 5 {
		if tr := get(t, u); !tr.Early || !u.WantsEarly(target) {
			t.Errorf("%+v", tr)
		}
	}
	known, err := NewGroup("g", r, Options{EarlyKnown: func(Spec) Verdict { return EarlyRefuses }})
	if err != nil {
		t.Fatal(err)
	}
	defer known.Close()
	if tr := get(t, known); tr.Early || known.Early() != EarlyRefuses {
		t.Errorf("%v: %+v", known.Early(), tr)
	}
}

// TestGroupUnsafeOnce: a request that may not be repeated is not, although two
// endpoints were asked for a tunnel.
func TestGroupUnsafeOnce(t *testing.T) {
	t.Parallel()
	var bodies atomic.Int32
	slow := func(wait time.Duration) netip.AddrPort {
		return serve(t, func(c *net.TCPConn) {
			b := make([]byte, 4096)
			if n, err := c.Read(b); err != nil || !bytes.HasSuffix(b[:n], []byte("\r\n\r\n")) {
				return
			}
			time.Sleep(wait)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			if n, err := c.Read(b); err == nil {
				bodies.Add(1)
				_, _ = c.Write(b[:n])
			}
		})
	}
	u, _ := groupOf(t, gateAt(slow(2200*time.Millisecond), "http", "a"), gateAt(slow(300*time.Millisecond), "http", "b"))
	c, err := u.DialStream(within(t, 10*time.Second), flow.Target{Name: "x.example", Port: 80}, []byte("POST / HTTP/1.1\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if bodies.Load() != 1 {
		t.Errorf("the request arrived %d times", bodies.Load())
	}
}

// TestEndpointErrorNamesNobody: it is shown beside the endpoint's name.
func TestEndpointErrorNamesNobody(t *testing.T) {
	u, r := groupOf(t, gateAt(closedPort(t), "http", "dead"))
	if _, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "x.example", Port: 443}, nil); err == nil {
		t.Fatal("a closed port carries flows")
	}
	if got := info(t, r, "dead").Error; !strings.HasPrefix(got, "dial tcp ") {
		t.Errorf("%q", got)
	}
}

func TestGroupUDP(t *testing.T) {
	p := &socksProxy{user: "u", pass: "p"}
	g := gateAt(serve(t, p.handle), "socks5", "u")
	g.UDP = true
	dead := gateAt(closedPort(t), "socks5", "dead")
	dead.UDP = true
	u, _ := groupOf(t, dead, g)
	server := udpEcho(t)
	c, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.TargetOf(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.WriteTo([]byte("ping"), flow.UDPAddrOf(server)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1500)
	if n, _, err := c.ReadFrom(b); err != nil || string(b[:n]) != "ping" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

// TestVerifyAnIdentity is what the engine does before it moves flows to a new
// one, and what the resolver measures by.
func TestVerifyAnIdentity(t *testing.T) {
	p := &socksProxy{user: "u", pass: "p"}
	u, r := groupOf(t, gateAt(serve(t, p.handle), "socks5", "u"))
	e, err := r.Pick(resolve.Key{})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.CheckEndpoint(within(t, 5*time.Second), e); err != nil {
		t.Error(err)
	}
	if took, err := u.Probe(within(t, 5*time.Second), e); err != nil || took <= 0 {
		t.Errorf("%v, %v", took, err)
	}
	wrong := &resolve.Endpoint{Name: e.Name, Scheme: e.Scheme, Host: e.Host, Port: e.Port, Username: e.Username, Password: "other"}
	var fe *Error
	if err := u.CheckEndpoint(within(t, 5*time.Second), wrong); !errors.As(err, &fe) || fe.Kind != Auth {
		t.Errorf("%v", err)
	}
}

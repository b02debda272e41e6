package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/netns"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// nobody is a user without rights.
const nobody = 65534

// asNobody is put before a program to take its rights away.
func asNobody() []string {
	id := strconv.Itoa(nobody)
	return []string{"setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups"}
}

// folder makes one that every user of the client can reach, and lets them
// run the programs.
func folder(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	dir := filepath.Join(l.Dir(), name)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755), os.Chmod(bin, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// inClient runs a program in the client and returns all it said and its exit code.
func inClient(t *testing.T, l *lab.Lab, argv ...string) (string, int) {
	t.Helper()
	cmd := l.Command(lab.Client, argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// fails runs a verb of atlantic and wants its exit code and words.
func (s *service) fails(code int, words []string, args ...string) {
	s.t.Helper()
	out, stderr, got := s.cli(args...)
	if got != code {
		s.t.Errorf("atlantic %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, stderr)
	}
	contains(s.t, stderr, words...)
	if strings.Contains(out+stderr, "s3cret") {
		s.t.Errorf("atlantic %s shows a password:\n%s%s", strings.Join(args, " "), out, stderr)
	}
}

// TestWrongConfiguration: the file is refused as a whole, with the place.
func TestWrongConfiguration(t *testing.T) {
	l := owned(t, "file")
	before := record(t, l)
	for _, tc := range []struct {
		name, toml string
		words      []string
	}{
		{"unknown key", "[tun]\nmtu = 1400\n  stak = \"kernel\"\n", []string{":3:3: unknown key \"stak\" in [tun]", `did you mean "stack"?`}},
		{"unknown section", "\n[tunn]\nmtu = 1400\n", []string{":2:2: unknown key \"tunn\""}},
		{"not TOML", "[tun\nmtu = 1400\n", []string{"atlantic.toml:1:"}},
		{"bad URL", "[[upstream]]\nname = \"a\"\nurl = \"ftp://u:s3cret@192.0.2.1:21\"\n", []string{":3:1: upstream \"a\": the scheme of the url is none of http, https, socks5, direct", "socks5://host:1080"}},
		{"URL without host", "[[upstream]]\nname = \"a\"\nurl = \"http://\"\n", []string{":3:1: upstream \"a\""}},
		{"unknown upstream in a rule", "[[rule]]\ndomain = [\"example.test\"]\nvia = \"nosuch\"\n", []string{":3:1: rule 1: via names no upstream, provider or group", "one of: auto, direct, block"}},
		{"public listener", "[listen]\nproxy = \"0.0.0.0:7890\"\n", []string{":2:1: 0.0.0.0 is not a loopback address"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &service{t: t, lab: l, dir: t.TempDir()}
			if err := os.WriteFile(s.config(), []byte(tc.toml), 0o600); err != nil {
				t.Fatal(err)
			}
			s.refused(1, tc.words...)
			s.fails(1, tc.words[:1], "config", "check", s.config())
			if strings.Contains(s.out.String(), "s3cret") {
				t.Errorf("it shows the password:\n%s", s.out)
			}
		})
	}
	t.Run("writable by others", func(t *testing.T) {
		s := &service{t: t, lab: l, dir: t.TempDir()}
		os.WriteFile(s.config(), nil, 0o600)
		os.Chmod(s.config(), 0o666)
		s.refused(1, "atlantic.toml", "writ")
	})
	same(t, l, before, "after wrong configurations")
}

// TestWrongUpstream: an upstream that cannot carry anything is found out before
// anything on the machine changes.
func TestWrongUpstream(t *testing.T) {
	l := owned(t, "file")
	proxies := map[proxy.Scheme]*proxy.Proxy{}
	for i, scheme := range []proxy.Scheme{proxy.HTTP, proxy.HTTPS, proxy.SOCKS5} {
		p, err := l.StartProxy(lab.ProxyOptions{Scheme: scheme, Index: i, Port: 3128, User: "user", Password: "right"})
		if err != nil {
			t.Fatal(err)
		}
		proxies[scheme] = p
	}
	toml := labDNS + fmt.Sprintf("[[upstream]]\nname = \"good\"\nurl = %q\n", proxies[proxy.HTTP].URL())
	toml += fmt.Sprintf("[[upstream]]\nname = \"h2\"\nurl = \"https://user:s3cret@203.0.113.11:3128\"\nca = %q\nsni = \"lab.test\"\n", l.CAFile())
	s := start(t, l, toml)
	s.answers()
	before := record(t, l)
	web := lab.Origin4().String() + ":80"
	for _, tc := range []struct {
		name, upstream string
		fault          proxy.Fault
		words          []string
	}{
		{"refused", "http://203.0.113.20:3128", 0, []string{"203.0.113.20:3128: connect: connection refused", "nothing listens there"}},
		{"refused by SOCKS5", "socks5://203.0.113.20", 0, []string{"203.0.113.20:1080: connect: connection refused", "nothing listens there"}},
		{"black hole", "http://" + lab.Blackhole4().String() + ":3128", 0, []string{"timeout", "check host, port and firewall"}},
		{"no such name", "http://nx.test:3128", 0, []string{"nx.test", "check the host name"}},
		{"407", "http://user:s3cret@203.0.113.10:3128", 0, []string{"CONNECT answered 407", "check user and password"}},
		{"407 without any password", "http://203.0.113.10:3128", 0, []string{"CONNECT answered 407", "check user and password"}},
		{"407 by HTTP/2", "h2", 0, []string{"CONNECT answered 407", "check user and password"}},
		{"SOCKS5 status 01", "socks5://user:s3cret@203.0.113.12:3128", 0, []string{"does not accept our user and password (status 1)", "check user and password"}},
		{"SOCKS5 without any password", "socks5://203.0.113.12:3128", 0, []string{"wants a user and password", "check user and password"}},
		{"unknown authority", "https://user:s3cret@203.0.113.11:3128", 0, []string{"certificate", "set ca to the authority's certificate"}},
		{"HTML", "http://user:right@203.0.113.10:3128", proxy.HTML, []string{"web page", "web server, not a proxy"}},
		{"HTML by SOCKS5", "socks5://user:right@203.0.113.12:3128", proxy.HTML, []string{"SOCKS5 handshake answered with HTTP", "the proxy speaks HTTP: use http://"}},
		{"a web server", "http://" + web, 0, []string{"CONNECT answered", "web server, not a proxy"}},
		{"a web server as SOCKS5", "socks5://" + web, 0, []string{"SOCKS5 handshake: connected, but no complete answer", "this is not a proxy's port"}},
		{"a web server as HTTPS", "https://" + web, 0, []string{"it speaks plain HTTP: use http:// instead of https://"}},
		// A FIN or, if our request has reached it before, an RST: "closed" or "reset".
		{"hangs up", "http://user:right@203.0.113.10:3128", proxy.Hangup, []string{"CONNECT: the proxy", "the connection", "check that scheme and port are right"}},
		{"HTTP as SOCKS5", "socks5://203.0.113.10:3128", 0, []string{"SOCKS5 handshake: connected, but no complete answer", "this is not a proxy's port"}},
		{"silent", "socks5://203.0.113.12:3128", proxy.Silent, []string{"connected, but no complete answer", "this is not a proxy's port"}},
		{"silent in TLS", "https://203.0.113.11:3128", proxy.Silent, []string{"connected, but no answer", "it may not speak TLS"}},
		{"SOCKS5 as HTTP", "http://user:s3cret@203.0.113.12:3128", 0, []string{"CONNECT", "scheme"}},
		{"TLS as HTTP", "http://203.0.113.11:3128", 0, []string{"CONNECT"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.t = t
			for _, p := range proxies {
				p.SetFault(tc.fault)
			}
			begin := time.Now()
			s.fails(3, append(tc.words, "error: not connected:", "traffic leaves directly", "hint:"), "up", "--upstream", tc.upstream)
			if took := time.Since(begin); took > 8*time.Second {
				t.Errorf("it took %v", took)
			}
			if st := s.status(); st.State != api.Off || st.Cause == "" || st.Hint == "" {
				t.Errorf("status is %s, cause %q, hint %q", st.State, st.Cause, st.Hint)
			}
			same(t, l, before, "after "+tc.name)
		})
	}
	s.t = t
	for _, p := range proxies {
		p.SetFault(proxy.None)
	}
	t.Run("after all that", func(t *testing.T) {
		s.t = t
		s.must("up", "--upstream", "good")
		works(t, l)
		during := record(t, l)
		s.fails(1, []string{"CONNECT answered 407", "check user and password"}, "use", "h2")
		s.fails(1, []string{"connection refused", "nothing listens there"}, "use", "http://203.0.113.20:3128")
		if st := s.status(); st.State != api.On || st.Upstream.Name != "good" || st.Cause != "" {
			t.Errorf("after a refused switch: %s by %s, cause %q", st.State, st.Upstream.Name, st.Cause)
		}
		works(t, l)
		same(t, l, during, "after a refused switch")
		s.must("down")
		same(t, l, before, "after down")
	})
}

// TestWrongWord: what the user types is wrong.
func TestWrongWord(t *testing.T) {
	l := owned(t, "file")
	s := start(t, l, upstreamToml(t, l))
	s.answers()
	before := record(t, l)
	for _, tc := range []struct {
		code  int
		words []string
		args  []string
	}{
		{1, []string{`there is no upstream named "nosuch"`, "known: auto, direct, one"}, []string{"up", "--upstream", "nosuch"}},
		{1, []string{`there is no upstream named "nosuch"`, "known: auto, direct, one"}, []string{"use", "nosuch"}},
		{1, []string{"the scheme of the url is none of", "scheme://user:password@host:port"}, []string{"up", "--upstream", "ftp://u:s3cret@192.0.2.1"}},
		{1, []string{"port", "hint:"}, []string{"use", "socks5://u:s3cret@192.0.2.1:99999"}},
		{1, []string{"the host is missing", "hint:"}, []string{"up", "--upstream", "http://:3128"}},
		{1, []string{"something after host:port", "hint:"}, []string{"up", "--upstream", "http://192.0.2.1:80/proxy"}},
		{2, []string{"--upstream needs a name or a URL"}, []string{"up", "--upstream", ""}},
		{2, []string{"unknown flag"}, []string{"up", "--now"}},
		{2, []string{"needs the name of an upstream"}, []string{"use"}},
		{1, []string{"there is no flow 99"}, []string{"flows", "--kill", "99"}},
		{1, []string{"not a host name"}, []string{"why", "two words"}},
		{1, []string{"ends in a number"}, []string{"why", "256.1.1.1"}},
		{1, []string{"no upstream named like that", "give a URL"}, []string{"up", "-u", "bob:s3cret@192.0.2.1"}},
		{1, []string{"url", "hint:"}, []string{"use", "socks5://127.0.0.1:1080:bob:s3cret"}},
		{1, []string{"port is not a number", "hint:"}, []string{"why", "bob:s3cret@192.0.2.1"}},
		{2, []string{"does not know what to do with"}, []string{"up", "socks5://bob:s3cret@192.0.2.1"}},
	} {
		s.fails(tc.code, tc.words, tc.args...)
	}
	if st := s.status(); st.State != api.Off || st.Upstream.Name != "one" {
		t.Errorf("status is %s by %s", st.State, st.Upstream.Name)
	}
	if _, _, code := s.cli("status"); code != 3 {
		t.Errorf("status while off: exit code %d", code)
	}
	absent := filepath.Join(s.dir, "absent")
	for _, verb := range []string{"status", "up", "down", "flows"} {
		if out, code := inClient(t, l, filepath.Join(bin, "atlantic"), "--socket", absent, verb); code != 5 {
			t.Errorf("%s without a service: exit code %d\n%s", verb, code, out)
		} else {
			contains(t, out, "the service is not running", "hint:  start it:")
		}
	}
	out, code := inClient(t, l, filepath.Join(bin, "atlanticd"), "run", "--bogus")
	if code != 2 {
		t.Errorf("atlanticd --bogus: exit code %d", code)
	}
	contains(t, out, "unknown flag", "atlanticd --help")
	same(t, l, before, "after wrong words")
}

// TestOccupied: somebody else has what the service needs.
func TestOccupied(t *testing.T) {
	l := owned(t, "file")
	toml := upstreamToml(t, l)
	before := record(t, l)
	t.Run("port", func(t *testing.T) {
		ln, err := l.NS(lab.Client).Listen("tcp", "127.0.0.1:7890")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		s := start(t, l, toml)
		s.answers()
		s.fails(3, []string{"127.0.0.1:7890", "address already in use", "[listen] proxy", "traffic leaves directly"}, "up")
		if st := s.status(); st.Code != api.ErrPortInUse {
			t.Errorf("code is %q", st.Code)
		}
		same(t, l, before, "after an occupied port")
		ln.Close()
		s.must("up")
		s.stop()
	})
	t.Run("second instance", func(t *testing.T) {
		s := start(t, l, toml, "--up")
		s.await(api.On)
		during := record(t, l)
		second := &service{t: t, lab: l, dir: s.dir}
		second.refused(1, "another atlanticd is running", s.socket())
		for _, args := range [][]string{
			{"--state", s.state(), "--socket", filepath.Join(s.dir, "sock2")},
			{"--state", filepath.Join(s.dir, "state2"), "--socket", filepath.Join(s.dir, "sock2")},
		} {
			out, code := inClient(t, l, append([]string{filepath.Join(bin, "atlanticd"), "run", "--config", s.config(), "--up"}, args...)...)
			if code != 1 {
				t.Errorf("%v: exit code %d\n%s", args, code, out)
			}
			contains(t, out, "running")
			same(t, l, during, "after a second instance")
		}
		works(t, l)
		s.stop()
	})
	t.Run("TUN name", func(t *testing.T) {
		if out, code := inClient(t, l, "ip", "link", "add", "atlantic0", "type", "bridge"); code != 0 {
			t.Fatal(out)
		}
		during := record(t, l)
		s := start(t, l, toml)
		s.answers()
		s.fails(3, []string{"atlantic0", "not ours", "[tun] name"}, "up")
		same(t, l, during, "after an occupied TUN name")
		s.stop()
		inClient(t, l, "ip", "link", "del", "atlantic0")
	})
	same(t, l, before, "at the end")
}

// TestWithoutRights: no root, no /dev/net/tun, and users who may only look.
func TestWithoutRights(t *testing.T) {
	l := owned(t, "file")
	before := record(t, l)
	t.Run("no root", func(t *testing.T) {
		s := &service{t: t, lab: l, dir: folder(t, l, "noroot"), wrap: asNobody()}
		s.refused(4, "a TUN needs root", "--no-tun")
		out, err := s.command("rescue", "--state", s.state()).CombinedOutput()
		var ee *exec.ExitError
		if !errors.As(err, &ee) || ee.ExitCode() != 4 {
			t.Errorf("rescue: %v\n%s", err, out)
		}
	})
	t.Run("no /dev/net/tun", func(t *testing.T) {
		hidden := []string{"unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"}
		s := startIn(t, l, t.TempDir(), hidden, labDNS)
		s.answers()
		s.fails(3, []string{"/dev/net/tun is missing", "modprobe tun", "--no-tun", "traffic leaves directly"}, "up")
		same(t, l, before, "without /dev/net/tun")
		s.stop()
		s = startIn(t, l, t.TempDir(), hidden, labDNS, "--no-tun", "--up")
		s.await(api.On)
		s.stop()
	})
	t.Run("user who may only look", func(t *testing.T) {
		s := startIn(t, l, folder(t, l, "look"), nil, labDNS)
		s.answers()
		atlantic := append(asNobody(), filepath.Join(bin, "atlantic"), "--socket", s.socket())
		out, code := inClient(t, l, append(atlantic, "status")...)
		if code != 3 {
			t.Errorf("status: exit code %d\n%s", code, out)
		}
		contains(t, out, "Off")
		for _, verb := range [][]string{{"up"}, {"down"}, {"use", "direct"}, {"flows"}, {"upstreams"}, {"why", "example.test"}, {"config", "show"}} {
			out, code := inClient(t, l, append(atlantic, verb...)...)
			if code != 4 {
				t.Errorf("%v: exit code %d", verb, code)
			}
			contains(t, out, "you may not do this", "run with sudo")
		}
		s.must("up")
		if out, code := inClient(t, l, append(atlantic, "down")...); code != 4 {
			t.Errorf("down while on: exit code %d\n%s", code, out)
		}
		if out, code := inClient(t, l, append(atlantic, "status")...); code != 0 {
			t.Errorf("status while on: exit code %d\n%s", code, out)
		}
		s.stop()
	})
	same(t, l, before, "at the end")
}

// TestForeignSocket: somebody without rights sits where the service should.
func TestForeignSocket(t *testing.T) {
	l := owned(t, "file")
	before := record(t, l)
	dir := folder(t, l, "sticky")
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, lab: l, dir: dir}
	var ln net.Listener
	err := netns.OnThread(func() (err error) {
		// Of this thread alone, which ends with it: what listens is nobody's.
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
			return e
		}
		ln, err = net.Listen("unix", s.socket())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s.fails(4, []string{"neither the system nor you", "--socket PATH"}, "up", "--upstream", "http://user:s3cret@192.0.2.1")
	s.fails(4, []string{"neither the system nor you"}, "status")
	s.refused(1, "is a socket owned by uid 65534, not by this user", "choose another path")
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	s.refused(1, "user 65534 owns it", "choose another path")
	same(t, l, before, "after somebody else's socket")
}

package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Real proxies of the distribution, as child processes on loopback.

func freePort(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// start runs a server until the test ends, and waits until port answers.
func start(t testing.TB, port int, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed", name)
	}
	var out bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	for range 100 {
		if c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second); err == nil {
			c.Close()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
	t.Fatalf("%s does not listen: %s", name, out.String())
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// shareDir is a directory that servers which drop root can use.
func shareDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "atlantic-proxy-test")
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(dir, 0o777)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// exercise drives a real proxy with what every upstream must do.
func exercise(t *testing.T, u *Upstream, halfClose bool) {
	t.Helper()
	if err := u.Check(within(t, 5*time.Second)); err != nil {
		t.Fatalf("check: %v", err)
	}
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	c, err := u.DialStream(within(t, 5*time.Second), flow.TargetOf(serve(t, echo)), []byte("early "))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(8 * time.Second))
	go func() {
		_, _ = c.Write(data)
		if halfClose {
			_ = c.CloseWrite()
		}
	}()
	want := append([]byte("early "), data...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("echo: %v", err)
	}
	if halfClose {
		if n, err := c.Read(got); err != io.EOF {
			t.Errorf("after FIN: %d bytes, %v", n, err)
		}
	}
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	closed := flow.TargetOf(flow.AddrPortOf(ln.Addr()))
	ln.Close()
	_, err = u.DialStream(within(t, 10*time.Second), closed, nil)
	var e *Error
	if !errors.As(err, &e) || e.Kind != Target {
		t.Errorf("closed port: %v", err)
	}
}

func expectAuth(t *testing.T, u *Upstream) {
	t.Helper()
	var e *Error
	if err := u.Check(within(t, 5*time.Second)); !errors.As(err, &e) || e.Kind != Auth {
		t.Errorf("wrong password: %v", err)
	}
}

func TestRealTinyproxy(t *testing.T) {
	port := freePort(t)
	conf := write(t, t.TempDir(), "tinyproxy.conf", fmt.Sprintf("Port %d\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nBasicAuth user secret\nLogLevel Error\n", port))
	start(t, port, "tinyproxy", "-d", "-c", conf)
	exercise(t, open(t, fmt.Sprintf("http://user:secret@127.0.0.1:%d", port), nil, Options{}), false)
	expectAuth(t, open(t, fmt.Sprintf("http://user:wrong@127.0.0.1:%d", port), nil, Options{}))
}

func TestRealSquid(t *testing.T) {
	dir, port := shareDir(t), freePort(t)
	conf := write(t, dir, "squid.conf", fmt.Sprintf("http_port 127.0.0.1:%d\nhttp_access allow all\npid_filename %s/pid\ncache_log %s/cache.log\naccess_log none\ncache deny all\ncoredump_dir %s\nshutdown_lifetime 0 seconds\nnetdb_filename none\n", port, dir, dir, dir))
	start(t, port, "squid", "-N", "-f", conf)
	exercise(t, open(t, fmt.Sprintf("http://127.0.0.1:%d", port), nil, Options{}), false)
}

func TestRealDante(t *testing.T) {
	dir, port := shareDir(t), freePort(t)
	conf := write(t, dir, "danted.conf", fmt.Sprintf(`logoutput: %s/log
internal: 127.0.0.1 port = %d
external: 127.0.0.1
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {
 from: 0.0.0.0/0 to: 0.0.0.0/0
}
socks pass {
 from: 0.0.0.0/0 to: 0.0.0.0/0
 command: bind connect udpassociate bindreply udpreply
}
`, dir, port))
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root, which dante needs")
	}
	start(t, port, "danted", "-f", conf, "-p", filepath.Join(dir, "pid"))
	u := open(t, fmt.Sprintf("socks5://127.0.0.1:%d", port), nil, Options{})
	exercise(t, u, true)

	server := udpEcho(t)
	c, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.TargetOf(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 65535)
	for _, size := range []int{1, 1400, 8000} {
		if _, err := c.WriteTo(b[:size], flow.UDPAddrOf(server)); err != nil {
			t.Fatal(err)
		}
		if n, from, err := c.ReadFrom(b); n != size || err != nil || flow.AddrPortOf(from) != server {
			t.Fatalf("%d of %d bytes from %v: %v", n, size, from, err)
		}
	}
}

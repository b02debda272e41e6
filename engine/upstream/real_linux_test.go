package upstream

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Real proxies of the distribution, as child processes on loopback.

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// start runs a server until the test ends, and waits until port answers.
func start(t *testing.T, port int, name string, args ...string) {
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

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// shareDir is a directory that servers which drop root can use.
func shareDir(t *testing.T) string {
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

// TestRealApache: HTTP/2 CONNECT and HTTP/1.1 CONNECT over TLS.
func TestRealApache(t *testing.T) {
	const modules = "/usr/lib/apache2/modules"
	if _, err := os.Stat(modules + "/mod_proxy_connect.so"); err != nil {
		t.Skip("SKIPPED: apache2 with mod_proxy_connect is not installed")
	}
	dir, port := shareDir(t), freePort(t)
	cert, _ := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	keyDER, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})))
	write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	var load strings.Builder
	for _, m := range []string{"mpm_event", "authz_core", "authn_core", "proxy", "proxy_connect", "ssl", "socache_shmcb", "http2"} {
		if _, err := os.Stat(modules + "/mod_" + m + ".so"); err == nil {
			fmt.Fprintf(&load, "LoadModule %s_module %s/mod_%s.so\n", m, modules, m)
		}
	}
	conf := write(t, dir, "apache.conf", fmt.Sprintf(`%sServerRoot %s
ServerName localhost
PidFile %s/pid
ErrorLog %s/log
Listen 127.0.0.1:%d
User nobody
Group nogroup
StartServers 1
Protocols h2 http/1.1
SSLEngine on
SSLCertificateFile %s/cert.pem
SSLCertificateKeyFile %s/key.pem
ProxyRequests On
AllowCONNECT 1-65535
<Proxy "*">
Require all granted
</Proxy>
`, load.String(), dir, dir, dir, port, dir, dir))
	start(t, port, "apache2", "-X", "-f", conf)
	leaf, _ := x509.ParseCertificate(cert.Certificate[0])
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	never := false
	for name, h2 := range map[string]*bool{"h2": nil, "http1": &never} {
		t.Run(name, func(t *testing.T) {
			u := open(t, fmt.Sprintf("https://127.0.0.1:%d", port), func(s *Spec) { s.CA, s.HTTP2 = pool, h2 }, Options{})
			exercise(t, u, false)
			if s := u.Stats(); (s.Reused > 0) != (name == "h2") {
				t.Errorf("HTTP/2 was not what was tested: %+v", s)
			}
		})
	}
}

package upstream

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
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

// tinyproxy starts one, with more of a configuration, and gives its URL.
func tinyproxy(t testing.TB, more string) (rawURL string) {
	t.Helper()
	port := freePort(t)
	conf := write(t, t.TempDir(), "tinyproxy.conf", fmt.Sprintf("Port %d\nListen 127.0.0.1\nTimeout 60\nMaxClients 400\nLogLevel Error\n%s", port, more))
	start(t, port, "tinyproxy", "-d", "-c", conf)
	return fmt.Sprintf("http://127.0.0.1:%d", port)
}

func squid(t testing.TB, rules string) (rawURL string) {
	t.Helper()
	dir, port := shareDir(t), freePort(t)
	conf := write(t, dir, "squid.conf", fmt.Sprintf(`http_port 127.0.0.1:%[1]d
%[3]shttp_access allow all
pid_filename %[2]s/pid
cache_log %[2]s/cache.log
access_log none
cache deny all
coredump_dir %[2]s
shutdown_lifetime 0 seconds
netdb_filename none
`, port, dir, rules))
	start(t, port, "squid", "-N", "-f", conf)
	return fmt.Sprintf("http://127.0.0.1:%d", port)
}

func dante(t testing.TB) (rawURL string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root, which dante needs")
	}
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
	start(t, port, "danted", "-f", conf, "-p", filepath.Join(dir, "pid"))
	return fmt.Sprintf("socks5://127.0.0.1:%d", port)
}

// pemFiles writes a certificate for 127.0.0.1 into dir; change has it trusted.
func pemFiles(t testing.TB, dir string) (cert, key string, change func(*Spec)) {
	t.Helper()
	c, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert = write(t, dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})))
	key = write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return cert, key, func(s *Spec) { s.CA = pool }
}

// apache starts Apache as a forward proxy that allows CONNECT to ports: in
// plain HTTP/1.1, or over TLS, with HTTP/2 too.
func apache(t testing.TB, overTLS bool, ports string) (rawURL string, change func(*Spec)) {
	t.Helper()
	const modules = "/usr/lib/apache2/modules"
	if _, err := os.Stat(modules + "/mod_proxy_connect.so"); err != nil {
		t.Skip("SKIPPED: apache2 with mod_proxy_connect is not installed")
	}
	dir, port := shareDir(t), freePort(t)
	cert, key, change := pemFiles(t, dir)
	var load strings.Builder
	for _, m := range []string{"mpm_event", "authz_core", "authn_core", "proxy", "proxy_http", "proxy_connect", "ssl", "socache_shmcb", "http2"} {
		if _, err := os.Stat(modules + "/mod_" + m + ".so"); err == nil {
			fmt.Fprintf(&load, "LoadModule %s_module %s/mod_%s.so\n", m, modules, m)
		}
	}
	scheme, protocols := "http", "Protocols http/1.1\n"
	if overTLS {
		scheme, protocols = "https", fmt.Sprintf("Protocols h2 http/1.1\nSSLEngine on\nSSLCertificateFile %s\nSSLCertificateKeyFile %s\n", cert, key)
	}
	conf := write(t, dir, "apache.conf", fmt.Sprintf(`%[1]sServerRoot %[2]s
ServerName localhost
PidFile %[2]s/pid
ErrorLog %[2]s/log
Listen 127.0.0.1:%[3]d
User nobody
Group nogroup
StartServers 1
ServerLimit 1
ThreadLimit 128
ThreadsPerChild 128
MaxRequestWorkers 128
H2MinWorkers 16
H2MaxWorkers 128
%[4]sProxyRequests On
AllowCONNECT %[5]s
<Proxy "*">
Require all granted
</Proxy>
`, load.String(), dir, port, protocols, ports))
	start(t, port, "apache2", "-X", "-f", conf)
	return fmt.Sprintf("%s://127.0.0.1:%d", scheme, port), change
}

// haproxy starts one in front of a proxy, with a rule.
func haproxy(t testing.TB, behind, rule string) (rawURL string) {
	t.Helper()
	port := freePort(t)
	conf := write(t, t.TempDir(), "haproxy.cfg", fmt.Sprintf(`defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend in
  bind 127.0.0.1:%d
  %s
  default_backend out
backend out
  server one %s
`, port, rule, strings.TrimPrefix(behind, "http://")))
	start(t, port, "haproxy", "-db", "-f", conf)
	return fmt.Sprintf("http://127.0.0.1:%d", port)
}

// nghttpx starts one in front of a proxy. It speaks HTTP/1.1 in plain text.
func nghttpx(t testing.TB, behind string) (rawURL string) {
	t.Helper()
	port := freePort(t)
	startNghttpx(t, port, behind, "no-tls")
	return fmt.Sprintf("http://127.0.0.1:%d", port)
}

// nghttpxTLS is nghttpx over TLS, where it speaks HTTP/2 and HTTP/1.1.
func nghttpxTLS(t testing.TB, behind string, args ...string) (rawURL string, change func(*Spec)) {
	t.Helper()
	port := freePort(t)
	cert, key, change := pemFiles(t, shareDir(t))
	startNghttpx(t, port, behind, "tls", append(args, key, cert)...)
	return fmt.Sprintf("https://127.0.0.1:%d", port), change
}

func startNghttpx(t testing.TB, port int, behind, tls string, args ...string) {
	t.Helper()
	backend := strings.Replace(strings.TrimPrefix(behind, "http://"), ":", ",", 1)
	start(t, port, "nghttpx", append([]string{"--conf=/dev/null", "--http2-proxy", "--workers=1", "--log-level=ERROR",
		fmt.Sprintf("--frontend=127.0.0.1,%d;%s", port, tls), "--backend=" + backend}, args...)...)
}

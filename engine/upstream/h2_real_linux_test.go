package upstream

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// apache starts Apache as a forward proxy over TLS, and gives its URL and what
// its certificate needs.
func apache(t testing.TB) (rawURL string, change func(*Spec)) {
	t.Helper()
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
	return fmt.Sprintf("https://127.0.0.1:%d", port), func(s *Spec) { s.CA = pool }
}

// TestRealApache: HTTP/2 CONNECT and HTTP/1.1 CONNECT over TLS.
func TestRealApache(t *testing.T) {
	rawURL, withCA := apache(t)
	never := false
	for name, h2 := range map[string]*bool{"h2": nil, "http1": &never} {
		t.Run(name, func(t *testing.T) {
			u := open(t, rawURL, func(s *Spec) { withCA(s); s.HTTP2 = h2 }, Options{})
			exercise(t, u, false)
			if s := u.Stats(); (s.Sessions > 0) != (name == "h2") {
				t.Errorf("HTTP/2 was not what was tested: %+v", s)
			}
		})
	}
}

func BenchmarkH2Apache(b *testing.B) {
	rawURL, change := apache(b)
	benchmarkThroughput(b, rawURL, change)
}

package upstream

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
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
ServerLimit 1
ThreadLimit 128
ThreadsPerChild 128
MaxRequestWorkers 128
H2MinWorkers 16
H2MaxWorkers 128
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

// TestRealApacheMany: Apache admits a hundred streams in a session and serves
// six of them, fewer after resets; no flow fails for that.
func TestRealApacheMany(t *testing.T) {
	rawURL, change := apache(t)
	u := open(t, rawURL, change, Options{})
	target := flow.TargetOf(serve(t, echo))
	for round := range 2 {
		held := make([]flow.StreamConn, 40)
		var wg sync.WaitGroup
		for i := range held {
			wg.Go(func() {
				c, err := u.DialStream(within(t, 12*time.Second), target, []byte{byte(i)})
				if err != nil {
					t.Error(err)
					return
				}
				held[i] = c
				b := make([]byte, 1)
				if _, err := io.ReadFull(c, b); err != nil || b[0] != byte(i) {
					t.Errorf("%d came back as %d: %v", i, b[0], err)
				}
			})
		}
		wg.Wait()
		t.Logf("round %d: %d sessions", round, u.Stats().Sessions)
		for _, c := range held {
			if c != nil {
				c.Close() // by RST_STREAM: the target has not ended
			}
		}
	}
}

func BenchmarkH2Apache(b *testing.B) {
	rawURL, change := apache(b)
	benchmarkThroughput(b, rawURL, change)
}

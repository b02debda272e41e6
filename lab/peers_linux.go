package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/template"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab/ca"
)

// Kind is a real proxy, as Debian packages it.
type Kind string

const (
	Dante     Kind = "danted"    // SOCKS5, TCP and UDP ASSOCIATE
	Tinyproxy Kind = "tinyproxy" // HTTP CONNECT
	Squid     Kind = "squid"     // HTTP CONNECT
	Apache    Kind = "apache2"   // CONNECT inside TLS, over HTTP/2 and HTTP/1.1
)

// ErrNoPeer is what StartPeer fails with where the program is not installed.
var ErrNoPeer = errors.New("program is not installed")

// Peer is a running real proxy.
type Peer struct {
	Kind Kind
	Addr netip.AddrPort
	URL  string // scheme://address

	cmd    *exec.Cmd
	exited chan struct{} // closed when the program has ended
	log    *bytes.Buffer // its output; read after exited
	dir    string
}

// peerConfig is each program's arguments and configuration. The programs stay
// in the foreground, where we can stop them by their process id.
type peerConfig struct {
	scheme, args, text string
}

func (k Kind) config() (peerConfig, bool) {
	switch k {
	case Dante:
		return peerConfig{"socks5", "-f {{.File}} -p {{.Dir}}/pid", `
logoutput: stderr
internal: {{.Addr}} port = {{.Port}}
external: {{.Addr}}
socksmethod: none
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }
socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 command: bind connect udpassociate }
socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 command: bindreply udpreply }
`}, true
	case Tinyproxy:
		return peerConfig{"http", "-d -c {{.File}}", `
Listen {{.Addr}}
Port {{.Port}}
Bind {{.Addr}}
Timeout 600
MaxClients 1000
LogLevel Error
`}, true
	case Squid:
		return peerConfig{"http", "-N -f {{.File}}", `
http_port {{.Addr}}:{{.Port}}
http_access allow all
cache deny all
tcp_outgoing_address {{.Addr}}
access_log none
cache_log {{.Dir}}/cache.log
pid_filename none
coredump_dir {{.Dir}}
cache_effective_user proxy
cache_mem 8 MB
max_filedescriptors 8192
shutdown_lifetime 0 seconds
visible_hostname squid.test
dns_nameservers 198.51.100.53
`}, true
	case Apache:
		return peerConfig{"https", "-D FOREGROUND -d {{.Dir}} -f {{.File}}", `
ServerName apache.test
PidFile {{.Dir}}/pid
DefaultRuntimeDir {{.Dir}}
ErrorLog {{.Dir}}/error.log
{{range $m := .Modules}}LoadModule {{$m}}_module /usr/lib/apache2/modules/mod_{{$m}}.so
{{end}}
User www-data
Group www-data
StartServers 1
ServerLimit 4
ThreadsPerChild 128
MaxRequestWorkers 512
H2MaxWorkers 512
H2MaxSessionStreams 250
Timeout 600
ProxyTimeout 600
Listen {{.Addr}}:{{.Port}}
Protocols h2 http/1.1
SSLEngine on
SSLCertificateFile {{.Dir}}/cert.pem
SSLCertificateKeyFile {{.Dir}}/key.pem
ProxyRequests On
AllowCONNECT 1-65535
<Proxy "*">
  Require all granted
</Proxy>
`}, true
	}
	return peerConfig{}, false
}

// StartPeer runs a real proxy in the internet, on upstream address index and
// port, and waits until it listens. Close of the peer or of the lab ends it.
func (l *Lab) StartPeer(kind Kind, index int, port uint16) (*Peer, error) {
	c, ok := kind.config()
	if !ok {
		return nil, fmt.Errorf("no such kind of peer: %s", kind)
	}
	if _, err := exec.LookPath(string(kind)); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, ErrNoPeer)
	}
	addr := Upstream4(index)
	p := &Peer{Kind: kind, Addr: netip.AddrPortFrom(addr, port), exited: make(chan struct{}), log: &bytes.Buffer{},
		dir: filepath.Join(l.dir, fmt.Sprintf("%s-%d-%d", kind, index, port))}
	p.URL = c.scheme + "://" + p.Addr.String()
	args, err := l.configurePeer(p, c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	p.cmd = l.Command(Internet, string(kind), args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its children end with it
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	go func() { // ends with the program; waited for by Close
		p.cmd.Wait()
		close(p.exited)
	}()
	l.onClose(p.Close)
	return p, l.awaitPeer(p)
}

// configurePeer writes configuration and certificate, and returns the
// program's arguments.
func (l *Lab) configurePeer(p *Peer, c peerConfig) ([]string, error) {
	if err := os.MkdirAll(p.dir, 0o777); err != nil {
		return nil, err
	}
	if err := os.Chmod(p.dir, 0o777); err != nil { // they drop their privileges
		return nil, err
	}
	cert, err := l.Certificate()
	if err != nil {
		return nil, err
	}
	chain, key, err := ca.EncodePEM(cert)
	if err != nil {
		return nil, err
	}
	data := struct {
		Dir, File string
		Addr      netip.Addr
		Port      uint16
		Modules   []string
	}{p.dir, filepath.Join(p.dir, "conf"), p.Addr.Addr(), p.Addr.Port(),
		[]string{"mpm_event", "authz_core", "ssl", "socache_shmcb", "http2", "proxy", "proxy_connect", "proxy_http"}}
	render := func(text string) []byte {
		var b bytes.Buffer
		if e := template.Must(template.New("").Parse(text)).Execute(&b, data); e != nil {
			err = e
		}
		return b.Bytes()
	}
	conf, args := render(c.text), render(c.args)
	return fields(args), errors.Join(err,
		os.WriteFile(data.File, conf, 0o644),
		os.WriteFile(filepath.Join(p.dir, "cert.pem"), chain, 0o644),
		os.WriteFile(filepath.Join(p.dir, "key.pem"), key, 0o600))
}

func fields(b []byte) (out []string) {
	for _, f := range bytes.Fields(b) {
		out = append(out, string(f))
	}
	return out
}

func (l *Lab) awaitPeer(p *Peer) error {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		c, err := l.nodes[Internet].ns.DialContext(ctx, "tcp", p.Addr.String())
		if err == nil {
			return c.Close()
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended at its start: %s%s", p.Kind, p.log, p.files())
		case <-ctx.Done():
			p.Close()
			return fmt.Errorf("%s does not listen on %s: %w: %s%s", p.Kind, p.Addr, err, p.log, p.files())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// files is what the program wrote into its log files.
func (p *Peer) files() string {
	out := ""
	for _, name := range []string{"cache.log", "error.log"} {
		if b, err := os.ReadFile(filepath.Join(p.dir, name)); err == nil {
			out += string(b)
		}
	}
	return out
}

// PID is the program's process id.
func (p *Peer) PID() int { return p.cmd.Process.Pid }

// Close ends the program and its children: SIGTERM, and after two seconds
// SIGKILL. It is idempotent.
func (p *Peer) Close() error {
	syscall.Kill(-p.PID(), syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(2 * time.Second):
		syscall.Kill(-p.PID(), syscall.SIGKILL)
		<-p.exited
	}
	return nil
}

package lab

import (
	"net/netip"

	"github.com/atlanticproxy/atlanticproxy/lab/ca"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// ProxyOptions for StartProxy.
type ProxyOptions struct {
	Scheme         proxy.Scheme
	Index          int    // which of the 16 upstream addresses
	IPv6           bool   // listen on Upstream6, not Upstream4
	Port           uint16 // 0 picks one
	User, Password string
	HTTP1Only      bool // HTTPS: no HTTP/2
	NoUDP          bool // SOCKS5
	DropEarly      bool // see proxy.Options
	Forwards       bool // see proxy.Options
	Admit          func(user, password string) bool
}

// StartProxy starts one of our own upstream proxies in the internet. Targets
// see it under its own address. Close of the proxy or of the lab ends it.
func (l *Lab) StartProxy(opt ProxyOptions) (*proxy.Proxy, error) {
	cert, err := l.Certificate()
	if err != nil {
		return nil, err
	}
	other, err := ca.New()
	if err != nil {
		return nil, err
	}
	wrong, err := other.Issue([]string{"wrong.example"}, nil)
	if err != nil {
		return nil, err
	}
	listen := Upstream4(opt.Index)
	if opt.IPv6 {
		listen = Upstream6(opt.Index)
	}
	p, err := proxy.Start(proxy.Options{
		Network: l.nodes[Internet].ns, Scheme: opt.Scheme, Listen: netip.AddrPortFrom(listen, opt.Port),
		From4: Upstream4(opt.Index), From6: Upstream6(opt.Index),
		User: opt.User, Password: opt.Password, Cert: cert, WrongCert: wrong,
		HTTP1Only: opt.HTTP1Only, NoUDP: opt.NoUDP, DropEarly: opt.DropEarly, Forwards: opt.Forwards, Admit: opt.Admit,
		Resolve: func(name string) []netip.Addr { addrs, _ := l.Zone.Lookup(name); return addrs },
		Log:     l.log,
	})
	if err != nil {
		return nil, err
	}
	l.onClose(p.Close)
	return p, nil
}

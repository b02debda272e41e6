package engine

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/route"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// From configuration to what the parts are made of.

func compileRules(cfg *config.Config) (*rules.Set, error) {
	list := make([]rules.Rule, 0, len(cfg.Rules))
	for _, r := range cfg.Rules {
		c := rules.Rule{Domain: r.Domain, DomainSuffix: r.DomainSuffix, CIDR: r.CIDR, Process: r.Process, Via: r.Via}
		for _, p := range r.Port {
			c.Port = append(c.Port, rules.PortRange{From: p.From, To: p.To})
		}
		list = append(list, c)
	}
	return rules.Compile(list)
}

func specOf(c config.Upstream) (upstream.Spec, error) {
	spec, err := upstream.ParseURL(c.Name, c.URL)
	if err != nil {
		return spec, fmt.Errorf("upstream %q: %w", c.Name, err)
	}
	if c.Username != "" {
		spec.Username = c.Username
	}
	if p := c.Password.Reveal(); p != "" {
		spec.Password = upstream.Secret(p)
	}
	spec.SNI, spec.NoEarly = c.SNI, !c.EarlyData
	if spec.CA, err = certPool(c.CA); err != nil {
		return spec, fmt.Errorf("upstream %q: %w", c.Name, err)
	}
	return spec, nil
}

// certPool reads whom TLS trusts; nil, the system's, if there is no file.
func certPool(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: %s holds no PEM certificate", file)
	}
	return pool, nil
}

func udpPolicy(s string) route.UDPPolicy {
	switch s {
	case "block":
		return route.UDPBlock
	case "direct":
		return route.UDPDirect
	}
	return route.UDPAuto
}

// processOf finds the app of a flow where the Host can tell.
func processOf(h platform.Host) func(network string, src, dst netip.AddrPort) string {
	if p, ok := h.(platform.Processes); ok {
		return p.Process
	}
	return nil
}

// uplinkOf is the physical network as the Host knows it before any change.
func uplinkOf(h platform.Host) platform.NetChange {
	if u, ok := h.(platform.Uplink); ok {
		return u.Uplink()
	}
	return platform.NetChange{Up: true}
}

// jitter spreads d by a tenth each way, so that many machines do not knock at
// one proxy together.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(rand.Int64N(int64(d)/5+1))
}

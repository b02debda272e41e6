// Package config reads, checks, shows and edits the service's configuration
// file.
//
//	file ──Load──► permissions ─► Parse ─► secrets ──► *Config ──TOML/Get──► people
//	  ▲                            │ strict TOML, every value checked,
//	  └──────── Set ───────────────┘ every error with file:line:column
//
// The file is TOML (docs/CONFIG.md is the reference). Every key is known, or
// it is an error; every default is in Default. Nothing here keeps state or
// starts a goroutine. The engine and the CLI import it. It imports what decides
// about validity, and makes the values that the engine is built of (Upstream.Spec,
// Provider.Account, Config.RuleSet), so that what is accepted here also starts:
// engine/proxy, engine/resolve, engine/rules, assets.
package config

import (
	"fmt"
	"net/netip"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// maxFileBytes bounds the file, and with it time and memory.
const maxFileBytes = 1 << 20

// Config is the whole configuration in force, defaults included.
type Config struct {
	Path    string // the file it came from; "" if there is none
	Text    []byte // what stands in it, passwords included; nil if there is none
	TUN     TUN
	Listen  Listen
	DNS     DNS
	Protect Protect
	// Upstreams in the user's order. Empty means the built-in upstream
	// "direct" alone.
	Upstreams []Upstream
	Providers []Provider
	Groups    []Group
	Rules     []Rule // first match wins
}

// TUN is the section [tun].
type TUN struct {
	Enabled bool
	Name    string // of the device
	MTU     int    // bytes; 0 means auto
	Stack   string // auto, kernel, userspace
}

// Listen is the section [listen].
type Listen struct {
	Proxy string // loopback ip:port of the HTTP and SOCKS5 proxy; "" means off
}

// DNS is the section [dns].
type DNS struct {
	Mode    string   // fake-ip, real
	Servers []string // https://, tls://, tcp://, udp:// URLs, or addresses; never empty
	// FakeRange is the IPv4 network that the TUN and fake addresses live in:
	// /16 or larger, not public.
	FakeRange netip.Prefix
}

// Protect is the section [protect].
type Protect struct {
	KillSwitch string // auto, off
	UDP        string // auto, block, direct
	LAN        bool   // private subnets that the machine is attached to go direct
}

// Upstream is one [[upstream]].
type Upstream struct {
	Name string // unique; never auto, direct, block
	// URL is scheme://host:port without credentials, which are in Username
	// and Password even if the file has them in the URL.
	URL          string
	SNI          string // TLS server name if it is not the URL's host
	CA           string // absolute path of a PEM file; "" means the system's roots
	Username     string
	Password     proxy.Secret // "" until Load has read PasswordFrom
	PasswordFrom string       // "file:/path" or "env:NAME"; "" if Password stands in the file itself
	// Pool is how many connections are kept ready at most, as demand wants
	// them; 0 means that each flow makes its own.
	Pool      int
	EarlyData bool // early data is used where the proxy is found to carry it
}

// Rule is one [[rule]]. All kinds of conditions that are not empty must hold.
type Rule struct {
	Domain       []string
	DomainSuffix []string
	CIDR         []netip.Prefix // masked
	Port         []PortRange
	Process      []string
	Via          string // auto, direct, block, or a name, see Names
}

// PortRange is From..To, both included.
type PortRange struct{ From, To uint16 }

// String is "443" or "8000-9000".
func (p PortRange) String() string {
	if p.From == p.To {
		return fmt.Sprint(p.From)
	}
	return fmt.Sprintf("%d-%d", p.From, p.To)
}

// Default returns the configuration of a machine without a file.
func Default() *Config {
	return &Config{
		TUN:    TUN{Enabled: true, Name: "atlantic0", Stack: "auto"},
		Listen: Listen{Proxy: "127.0.0.1:7890"},
		DNS: DNS{
			Mode:      "fake-ip",
			Servers:   []string{"https://1.1.1.1/dns-query"},
			FakeRange: netip.MustParsePrefix("198.18.0.0/15"),
		},
		Protect: Protect{KillSwitch: "auto", UDP: "auto", LAN: true},
	}
}

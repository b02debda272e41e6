package linux

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// everything is the configuration of `atlantic up` with its defaults.
func everything() platform.NetConfig {
	return platform.NetConfig{
		TUN: "atlantic0", MTU: 1500,
		Addr4: netip.MustParsePrefix("198.18.0.1/15"), Addr6: netip.MustParsePrefix("fd61:746c:616e:7469::1/64"),
		Default4: true, Default6: true, LAN: true, DNS: []netip.Addr{netip.MustParseAddr("198.18.0.2")},
	}
}

func TestPlan(t *testing.T) {
	lan := []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("fd00:7::/64")}
	tests := []struct {
		name string
		cfg  func(*platform.NetConfig)
		f    facts
		want string
	}{
		{
			name: "zero", cfg: func(c *platform.NetConfig) { *c = platform.NetConfig{} },
			f: facts{IPv6: true, TUN6: true, Loopback6: true, NFT: true, LAN: lan},
		},
		{
			name: "everything", f: facts{IPv6: true, TUN6: true, Loopback6: true, NFT: true, LAN: lan, StrictRP: []string{"all"}, DNS: dnsFile},
			want: `
nft add table inet atlantic (tun atlantic0 [198.18.0.1 fd61:746c:616e:7469::1])
sysctl net.ipv4.conf.all.src_valid_mark=1
ip -4 route add default dev atlantic0 table 7891
ip -6 route add default dev atlantic0 table 7891
ip -4 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -4 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -4 rule add pref 5303 from 198.18.0.1/32 lookup 7891
ip -4 rule add pref 5305 fwmark 0 ipproto udp dport 53 lookup 7891
ip -4 rule add pref 5305 fwmark 0 ipproto tcp dport 53 lookup 7891
ip -4 rule add pref 5310 to 169.254.0.0/16 lookup main
ip -4 rule add pref 5310 to 224.0.0.0/4 lookup main
ip -4 rule add pref 5310 to 255.255.255.255/32 lookup main
ip -4 rule add pref 5311 to 192.168.7.0/24 lookup main
ip -4 rule add pref 5330 fwmark 0 lookup 7891
ip -4 rule add pref 5331 not iif lo lookup 7891
ip -6 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -6 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -6 rule add pref 5303 from fd61:746c:616e:7469::1/128 lookup 7891
ip -6 rule add pref 5305 fwmark 0 ipproto udp dport 53 lookup 7891
ip -6 rule add pref 5305 fwmark 0 ipproto tcp dport 53 lookup 7891
ip -6 rule add pref 5310 to fe80::/10 lookup main
ip -6 rule add pref 5310 to ff00::/8 lookup main
ip -6 rule add pref 5311 to fd00:7::/64 lookup main
ip -6 rule add pref 5330 fwmark 0 lookup 7891
ip -6 rule add pref 5331 not iif lo lookup 7891
dns file [198.18.0.2] dev atlantic0`,
		},
		{
			name: "no lan, no dns, loose reverse path",
			cfg:  func(c *platform.NetConfig) { c.LAN, c.DNS = false, nil },
			f:    facts{IPv6: true, TUN6: true, Loopback6: true, NFT: true, LAN: lan},
			want: `
nft add table inet atlantic (tun atlantic0 [198.18.0.1 fd61:746c:616e:7469::1])
ip -4 route add default dev atlantic0 table 7891
ip -6 route add default dev atlantic0 table 7891
ip -4 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -4 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -4 rule add pref 5303 from 198.18.0.1/32 lookup 7891
ip -4 rule add pref 5330 fwmark 0 lookup 7891
ip -4 rule add pref 5331 not iif lo lookup 7891
ip -6 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -6 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -6 rule add pref 5303 from fd61:746c:616e:7469::1/128 lookup 7891
ip -6 rule add pref 5330 fwmark 0 lookup 7891
ip -6 rule add pref 5331 not iif lo lookup 7891`,
		},
		{
			name: "redirect", f: facts{IPv6: true, TUN6: true, Loopback6: true, NFT: true},
			cfg: func(c *platform.NetConfig) {
				c.LAN, c.DNS, c.Redirect, c.RedirectExcept = false, nil, 7777, []uint16{22, 25}
			},
			want: `
nft add table inet atlantic (tun atlantic0 [198.18.0.1 fd61:746c:616e:7469::1])
ip -4 route add default dev atlantic0 table 7891
ip -6 route add default dev atlantic0 table 7891
ip -4 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -4 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -4 rule add pref 5303 from 198.18.0.1/32 lookup 7891
ip -4 rule add pref 5330 fwmark 0 lookup 7891
ip -4 rule add pref 5331 not iif lo lookup 7891
ip -6 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -6 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -6 rule add pref 5303 from fd61:746c:616e:7469::1/128 lookup 7891
ip -6 rule add pref 5330 fwmark 0 lookup 7891
ip -6 rule add pref 5331 not iif lo lookup 7891
nft redirect tcp of dev atlantic0 to :7777, also to fd61:746c:616e:7469::/64, not to ports [22 25]`,
		},
		{
			name: "redirect without nftables", f: facts{},
			cfg: func(c *platform.NetConfig) { c.LAN, c.DNS, c.Redirect = false, nil, 7777 },
			want: `
ip -4 route add default dev atlantic0 table 7891
ip -4 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -4 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -4 rule add pref 5303 from 198.18.0.1/32 lookup 7891
ip -4 rule add pref 5330 fwmark 0 lookup 7891
ip -4 rule add pref 5331 not iif lo lookup 7891`,
		},
		{
			name: "ipv6 left alone", cfg: func(c *platform.NetConfig) { c.Default6, c.LAN, c.DNS = false, false, nil },
			f: facts{IPv6: true, TUN6: true, Loopback6: true, NFT: true, LAN: lan},
			want: `
nft add table inet atlantic (tun atlantic0 [198.18.0.1 fd61:746c:616e:7469::1])
ip -4 route add default dev atlantic0 table 7891
ip -4 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -4 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -4 rule add pref 5303 from 198.18.0.1/32 lookup 7891
ip -4 rule add pref 5330 fwmark 0 lookup 7891
ip -4 rule add pref 5331 not iif lo lookup 7891`,
		},
		{
			name: "other networks", f: facts{
				IPv6: true, TUN6: true, NFT: true, Uplinks: []string{"eth0", "wlan0"},
				Others: []op{
					{Kind: opRoute, Family: 4, Table: tableOwn, Dev: "wg0", To: netip.MustParsePrefix("10.9.0.0/24"), Src: netip.MustParseAddr("10.9.0.2")},
					{Kind: opRoute, Family: 4, Table: tableOwn, Dev: "eth1", To: netip.MustParsePrefix("10.50.0.0/16"), Gateway: netip.MustParseAddr("192.168.9.1")},
					{Kind: opRoute, Family: 6, Table: tableOwn, Dev: "wg0", To: netip.MustParsePrefix("fd09::/64")},
				},
			},
			cfg: func(c *platform.NetConfig) { c.LAN, c.DNS, c.Default6 = false, nil, false },
			want: `
nft add table inet atlantic (tun atlantic0 [198.18.0.1 fd61:746c:616e:7469::1])
nft refuse what is forwarded from [eth0 wlan0] to dev atlantic0
ip -4 route add default dev atlantic0 table 7891
ip -4 route add 10.9.0.0/24 dev wg0 src 10.9.0.2 table 7891
ip -4 route add 10.50.0.0/16 via 192.168.9.1 dev eth1 table 7891
ip -4 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -4 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -4 rule add pref 5303 from 198.18.0.1/32 lookup 7891
ip -4 rule add pref 5330 fwmark 0 lookup 7891
ip -4 rule add pref 5331 not iif lo lookup 7891`,
		},
		{
			name: "queries to link-local resolvers", f: facts{
				IPv6: true, TUN6: true, NFT: true, Links: []link{{"eth0", netip.MustParseAddr("fe80::2")}},
			},
			cfg: func(c *platform.NetConfig) { c.LAN, c.DNS, c.Default4, c.LinkDNS = false, nil, false, 5399 },
			want: `
nft add table inet atlantic (tun atlantic0 [198.18.0.1 fd61:746c:616e:7469::1])
ip -6 route add default dev atlantic0 table 7891
ip -6 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -6 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -6 rule add pref 5303 from fd61:746c:616e:7469::1/128 lookup 7891
ip -6 rule add pref 5330 fwmark 0 lookup 7891
ip -6 rule add pref 5331 not iif lo lookup 7891
nft take queries to link-local resolvers by [{eth0 fe80::2}] to port 5399`,
		},
		{
			name: "the tun takes no ipv6",
			cfg:  func(c *platform.NetConfig) { c.LAN, c.DNS, c.Redirect = false, nil, 7777 },
			f:    facts{IPv6: true, NFT: true},
			want: `
nft add table inet atlantic (tun atlantic0 [198.18.0.1 fd61:746c:616e:7469::1])
ip -4 route add default dev atlantic0 table 7891
ip -6 route add unreachable default table 7891
ip -4 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -4 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -4 rule add pref 5303 from 198.18.0.1/32 lookup 7891
ip -4 rule add pref 5330 fwmark 0 lookup 7891
ip -4 rule add pref 5331 not iif lo lookup 7891
ip -6 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -6 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -6 rule add pref 5303 from fd61:746c:616e:7469::1/128 lookup 7891
ip -6 rule add pref 5330 fwmark 0 lookup 7891
ip -6 rule add pref 5331 not iif lo lookup 7891
nft redirect tcp of dev atlantic0 to :7777`,
		},
		{
			name: "no ipv6, no nftables, strict reverse path", cfg: func(c *platform.NetConfig) { c.DNS = nil },
			f: facts{StrictRP: []string{"all", "eth0"}, Listening: []uint16{22, 443}, LAN: lan},
			want: `
sysctl net.ipv4.conf.all.rp_filter=2
sysctl net.ipv4.conf.eth0.rp_filter=2
ip -4 route add default dev atlantic0 table 7891
ip -4 rule add pref 5300 fwmark 0x41540000/0xffff0000 lookup main
ip -4 rule add pref 5301 fwmark 0x41540000/0xffff0000 unreachable
ip -4 rule add pref 5303 from 198.18.0.1/32 lookup 7891
ip -4 rule add pref 5302 ipproto tcp sport 22 lookup main
ip -4 rule add pref 5302 ipproto tcp sport 443 lookup main
ip -4 rule add pref 5310 to 169.254.0.0/16 lookup main
ip -4 rule add pref 5310 to 224.0.0.0/4 lookup main
ip -4 rule add pref 5310 to 255.255.255.255/32 lookup main
ip -4 rule add pref 5311 to 192.168.7.0/24 lookup main
ip -4 rule add pref 5330 fwmark 0 lookup 7891
ip -4 rule add pref 5331 not iif lo lookup 7891`,
		},
		{
			name: "tun without default routes",
			cfg:  func(c *platform.NetConfig) { c.Default4, c.Default6, c.DNS = false, false, nil },
			f:    facts{IPv6: true, TUN6: true, Loopback6: true, NFT: true, LAN: lan},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := everything()
			if tt.cfg != nil {
				tt.cfg(&cfg)
			}
			var lines []string
			seen := make(map[string]bool)
			for _, o := range plan(cfg, tt.f) {
				if seen[o.String()] {
					t.Errorf("twice: %s", o)
				}
				seen[o.String()] = true
				lines = append(lines, o.String())
			}
			got, want := strings.Join(lines, "\n"), strings.TrimPrefix(tt.want, "\n")
			if got != want {
				t.Errorf("operations:\n%s\n--- want\n%s", got, want)
			}
		})
	}
}

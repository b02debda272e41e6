package windows

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	sys "golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"

	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

// settle is how long the network must be quiet before a change is reported.
const settle = 200 * time.Millisecond

// subscribe has the system call us on changes of routes, interfaces and
// addresses. What changed is looked up afterwards, so an event carries nothing.
func (h *Host) subscribe() error {
	event := func() {
		select {
		case h.events <- struct{}{}:
		default:
		}
	}
	routes, err := winipcfg.RegisterRouteChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibIPforwardRow2) { event() })
	if err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	h.callbacks = append(h.callbacks, routes.Unregister)
	ifaces, err := winipcfg.RegisterInterfaceChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibIPInterfaceRow) { event() })
	if err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	h.callbacks = append(h.callbacks, ifaces.Unregister)
	addrs, err := winipcfg.RegisterUnicastAddressChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibUnicastIPAddressRow) { event() })
	if err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	h.callbacks = append(h.callbacks, addrs.Unregister)
	return nil
}

func (h *Host) unsubscribe() (err error) {
	for _, stop := range slices.Backward(h.callbacks) {
		if e := stop(); e != nil {
			err = fmt.Errorf("stop watching the network: %w", e)
		}
	}
	h.callbacks = nil
	return err
}

// watch reports changes until Close.
func (h *Host) watch() {
	quiet := time.NewTimer(settle)
	quiet.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-h.events:
			quiet.Reset(settle)
		case <-quiet.C:
			changed, err := h.refresh()
			if err != nil {
				h.log.Warn("look at the network", "err", err)
			} else if changed {
				h.report()
			}
		}
	}
}

// report delivers the network as it is now in place of one that nobody took,
// and routes newly attached subnets as the configuration wants.
func (h *Host) report() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	if h.cfg.TUN != "" {
		if err := h.apply(context.Background(), h.cfg); err != nil {
			h.log.Warn("follow a network change", "err", err)
		}
	}
	select {
	case <-h.changes:
	default:
	}
	h.changes <- h.uplink // only this goroutine sends, and there is room now
}

// refresh looks at the physical network and says whether it differs from last
// time.
func (h *Host) refresh() (changed bool, err error) {
	n, dns, err := scan()
	if err != nil {
		return false, err
	}
	c := n.Change(nil)
	c.DNS = dns[c.Interface]
	h.net.Store(&n)
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = !reflect.DeepEqual(c, h.uplink)
	h.uplink = c
	return changed, nil
}

// scan reads the physical interfaces, the resolvers of each and the default
// routes.
func scan() (n physical.Network, dns map[string][]netip.Addr, err error) {
	adapters, err := winipcfg.GetAdaptersAddresses(sys.AF_UNSPEC, winipcfg.GAAFlagDefault)
	if err != nil {
		return n, nil, fmt.Errorf("list adapters: %w", err)
	}
	dns = map[string][]netip.Addr{}
	luids := map[winipcfg.LUID]int{}
	for _, a := range adapters {
		if a.OperStatus != winipcfg.IfOperStatusUp || !hardware(a.IfType) {
			continue
		}
		l := physical.Link{Name: a.FriendlyName(), Index: int(max(a.IfIndex, a.IPv6IfIndex))}
		for u := a.FirstUnicastAddress; u != nil; u = u.Next {
			if ip, ok := netip.AddrFromSlice(u.Address.IP()); ok {
				l.Addrs = append(l.Addrs, netip.PrefixFrom(ip.Unmap(), int(u.OnLinkPrefixLength)))
			}
		}
		for d := a.FirstDNSServerAddress; d != nil; d = d.Next {
			if ip, ok := netip.AddrFromSlice(d.Address.IP()); ok {
				dns[l.Name] = append(dns[l.Name], ip.Unmap())
			}
		}
		n.Links = append(n.Links, l)
		luids[a.LUID] = l.Index
	}
	if n.Default4, err = defaultRoute(sys.AF_INET, luids); err != nil {
		return n, nil, err
	}
	n.Default6, err = defaultRoute(sys.AF_INET6, luids)
	return n, dns, err
}

// hardware leaves out loopback and every kind of tunnel, ours and others'.
func hardware(t winipcfg.IfType) bool {
	switch t {
	case winipcfg.IfTypeEthernetCSMACD, winipcfg.IfTypeIEEE80211, winipcfg.IfTypeWwanpp, winipcfg.IfTypeWwanpp2:
		return true
	}
	return false
}

// defaultRoute returns the interface of the default route with the lowest
// metric among the given ones; 0 if there is none.
func defaultRoute(family winipcfg.AddressFamily, luids map[winipcfg.LUID]int) (index int, err error) {
	rows, err := winipcfg.GetIPForwardTable2(family)
	if err != nil {
		return 0, fmt.Errorf("read the routing table: %w", err)
	}
	best := ^uint32(0)
	for i := range rows {
		r := &rows[i]
		link, ok := luids[r.InterfaceLUID]
		if !ok || r.DestinationPrefix.PrefixLength != 0 {
			continue
		}
		iface, err := r.InterfaceLUID.IPInterface(family)
		if err != nil || !iface.Connected {
			continue // it has just gone
		}
		if metric := r.Metric + iface.Metric; metric < best {
			best, index = metric, link
		}
	}
	return index, nil
}

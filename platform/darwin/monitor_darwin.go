package darwin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"time"

	"golang.org/x/net/route"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

// settle is how long the network must be quiet before a change is reported.
const settle = 200 * time.Millisecond

func openMonitor() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("open the routing socket: %w", err)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil { // so that Close ends a Read
		unix.Close(fd)
		return nil, fmt.Errorf("open the routing socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "route"), nil
}

// watch reports changes until Close. Any routing message makes it look again;
// what it then sees is the truth, so lost messages do not matter.
func (h *Host) watch() {
	events := make(chan struct{}, 1)
	h.watched.Go(func() { h.listen(events) })
	quiet := time.NewTimer(settle)
	quiet.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		select {
		case <-h.stop:
			return
		case <-events:
			quiet.Reset(settle)
		case <-quiet.C:
			changed, err := h.refresh(ctx)
			if err != nil {
				h.log.Warn("look at the network", "err", err)
			} else if changed {
				h.report()
			}
		}
	}
}

// listen turns routing messages into events, until the socket is closed.
func (h *Host) listen(events chan<- struct{}) {
	buf := make([]byte, 4096)
	for {
		if _, err := h.monitor.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		select {
		case events <- struct{}{}:
		default:
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
	if h.cfg.TUN != "" && exists(h.cfg.TUN) {
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
func (h *Host) refresh(ctx context.Context) (changed bool, err error) {
	n, err := scan()
	if err != nil {
		return false, err
	}
	h.net.Store(&n)
	c := n.Change(nil)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	h.mu.Lock()
	ours := h.cfg.DNS
	h.mu.Unlock()
	out, err := output(ctx, command{Args: []string{scutilPath, "--dns"}})
	if err != nil {
		h.log.Warn("read the machine's resolvers", "err", err)
	}
	c.DNS = parseDNS(out, c.Interface, ours)
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = !reflect.DeepEqual(c, h.uplink)
	h.uplink = c
	return changed, nil
}

// scan reads interfaces and default routes. A point-to-point interface is some
// tunnel, ours or another's, and not the physical network.
func scan() (n physical.Network, err error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return n, fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 {
			continue
		}
		l := physical.Link{Name: i.Name, Index: i.Index}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				l.Addrs = append(l.Addrs, p)
			}
		}
		n.Links = append(n.Links, l)
	}
	rib, err := route.FetchRIB(unix.AF_UNSPEC, route.RIBTypeRoute, 0)
	if err != nil {
		return n, fmt.Errorf("read the routing table: %w", err)
	}
	msgs, err := route.ParseRIB(route.RIBTypeRoute, rib)
	if err != nil {
		return n, fmt.Errorf("read the routing table: %w", err)
	}
	n.Default4, n.Default6 = defaults(msgs, n.Links)
	return n, nil
}

// defaults finds the default routes by one of the links. The unscoped one is
// the primary interface's; a scoped one counts where there is no other.
func defaults(msgs []route.Message, links []physical.Link) (v4, v6 int) {
	physical := map[int]bool{}
	for _, l := range links {
		physical[l.Index] = true
	}
	var scoped4, scoped6 int
	for _, m := range msgs {
		r, ok := m.(*route.RouteMessage)
		if !ok || r.Flags&unix.RTF_GATEWAY == 0 || r.Flags&unix.RTF_UP == 0 || !physical[r.Index] {
			continue
		}
		is4, is6 := isDefault(r)
		scoped := r.Flags&unix.RTF_IFSCOPE != 0
		for _, c := range []struct {
			match bool
			index *int
		}{{is4 && !scoped, &v4}, {is4 && scoped, &scoped4}, {is6 && !scoped, &v6}, {is6 && scoped, &scoped6}} {
			if c.match && *c.index == 0 {
				*c.index = r.Index
			}
		}
	}
	if v4 == 0 {
		v4 = scoped4
	}
	if v6 == 0 {
		v6 = scoped6
	}
	return v4, v6
}

func isDefault(r *route.RouteMessage) (is4, is6 bool) {
	if len(r.Addrs) <= unix.RTAX_NETMASK {
		return false, false
	}
	switch dst := r.Addrs[unix.RTAX_DST].(type) {
	case *route.Inet4Addr:
		mask, ok := r.Addrs[unix.RTAX_NETMASK].(*route.Inet4Addr)
		return dst.IP == [4]byte{} && (!ok || mask.IP == [4]byte{}), false
	case *route.Inet6Addr:
		mask, ok := r.Addrs[unix.RTAX_NETMASK].(*route.Inet6Addr)
		return false, dst.IP == [16]byte{} && (!ok || mask.IP == [16]byte{})
	}
	return false, false
}

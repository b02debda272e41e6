package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	mergeChanges = 200 * time.Millisecond
	repairPause  = 500 * time.Millisecond
	netlinkBytes = 1 << 20 // receive buffer of each netlink socket

	// enum rtnetlink_groups and nfnetlink_groups
	groupIPv4Rule = 8
	groupIPv6Rule = 19
	groupNFTables = 7
)

// The monitor reads no event's content. Whatever happens, it looks at the
// machine afresh once things have been quiet for a moment; a lost event
// (ENOBUFS) is thus an event like any other.
//
//	rtnetlink  links, addresses, routes, rules ─┐
//	nfnetlink  nft tables                       ├─ wake ─ 200 ms ─► resync
//	inotify    resolv.conf                      ─┘

// startMonitor starts the goroutines that watch; ctx ends them.
func (h *Host) startMonitor(ctx context.Context) error {
	var files []*os.File
	open := func(f *os.File, err error) error {
		if err == nil {
			files = append(files, f)
		}
		return err
	}
	err := open(netlinkSocket(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, groupIPv4Rule, groupIPv6Rule))
	if err != nil {
		return fmt.Errorf("watch the network: %w", err)
	}
	if h.privileged {
		if err := open(netlinkSocket(unix.NETLINK_NETFILTER, groupNFTables)); err != nil {
			h.log.Warn("cannot watch nftables", "error", err)
		}
		if err := open(h.watchResolvConf()); err != nil {
			h.log.Warn("cannot watch resolv.conf", "error", err)
		}
	}
	wake := make(chan struct{}, 1)
	var readers sync.WaitGroup
	for _, f := range files {
		readers.Go(func() { readEvents(ctx, f, wake) })
	}
	h.watched.Go(func() {
		h.monitor(ctx, wake)
		for _, f := range files {
			_ = f.Close() // ends its reader
		}
		readers.Wait()
		close(h.changes)
	})
	return nil
}

func netlinkSocket(protocol int, groups ...int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "netlink")
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, netlinkBytes)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		f.Close()
		return nil, err
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			f.Close()
			return nil, fmt.Errorf("join netlink group %d: %w", g, err)
		}
	}
	return f, nil
}

// readEvents wakes the monitor for every event of f until f is closed.
func readEvents(ctx context.Context, f *os.File, wake chan<- struct{}) {
	buf := make([]byte, 1<<16)
	for ctx.Err() == nil {
		if _, err := f.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

func (h *Host) monitor(ctx context.Context, wake <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(mergeChanges):
		}
		select { // what came in meanwhile is about to be looked at
		case <-wake:
		default:
		}
		for h.resync(ctx) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(repairPause):
			}
		}
	}
}

// resync looks at the machine, repairs what somebody has taken away from us,
// follows the attached subnets, and tells the engine if the uplink changed. It
// reports whether it put a repair off, because there were too many of late.
func (h *Host) resync(ctx context.Context) (again bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	now := h.look()
	changed := !sameChange(now, h.uplink)
	h.uplink = now
	h.routes.forget() // a route to one host may have changed, which now does not show
	switch {
	case h.cfg.TUN != "":
		if again = !h.repairs.Allow(); !again {
			if err := h.repair(ctx); err != nil {
				h.log.Warn("cannot repair the network", "error", err)
			}
		}
	case h.journal != nil && len(h.journal.pending) > 0: // put off, or failed, when it was to be undone
		if err := h.undoAll(); err != nil {
			h.log.Warn("cannot undo what is left", "error", err)
		}
	}
	if changed {
		h.log.Info("the network changed", "up", now.Up, "interface", now.Interface, "lan", now.LAN)
		deliver(h.changes, now)
	}
	return again
}

// repair makes again what is missing, then follows the facts. What fails does
// not keep the rest from being repaired.
func (h *Host) repair(ctx context.Context) error {
	if _, err := deviceIndex(h.cfg.TUN); err != nil {
		return nil // the device has been closed; the engine will say so
	}
	// Set down, a device loses its routes and IPv6 addresses.
	errs := []error{configureTUN(h.cfg.TUN, h.cfg.MTU, h.cfg.Addr4, h.cfg.Addr6)}
	f, err := h.gather(h.cfg)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	want := plan(h.cfg, f)
	errs = append(errs, h.mend(want), h.reconcile(ctx, want))
	h.notice(h.cfg, f)
	return errors.Join(errs...)
}

// mend makes again what is wanted, in force by the journal, and not there.
func (h *Host) mend(want []op) error {
	wanted := make(map[string]bool, len(want))
	for _, o := range want {
		wanted[o.String()] = true
	}
	missing, err := h.missing()
	errs := []error{err}
	for _, e := range missing {
		if !wanted[e.Op.String()] { // what it belonged to is gone too
			continue
		}
		h.log.Warn("a setting of ours is gone; making it again", "change", e.Op.String())
		if e.Op.Kind == opDNS {
			err = h.retakeDNS(e)
		} else {
			err = h.do(*e.Op)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.Op, err))
		}
	}
	return errors.Join(errs...)
}

// missing lists what the journal says is in force and is not there; what cannot
// be looked for is an error, beside the list.
func (h *Host) missing() ([]entry, error) {
	rules, err := ownRules()
	if err != nil {
		return nil, fmt.Errorf("list the policy rules: %w", err)
	}
	routes, err := ownRoutes()
	if err != nil {
		return nil, err
	}
	var gone []entry
	var errs []error
	for _, e := range h.journal.pending {
		present := true
		var err error
		switch e.Op.Kind {
		case opRule:
			present = ruleIn(*e.Op, rules)
		case opRoute:
			present = routeIn(*e.Op, routes)
		case opNFT:
			present, err = h.nftPresent()
		case opRedirect:
			present, err = chainPresent(redirectChain)
		case opGate:
			present, err = chainPresent(gateChain)
		case opLinkDNS:
			present, err = chainPresent(linkDNSChain)
		case opDNS:
			present, err = h.dnsPresent(*e.Op)
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("look for %s: %w", e.Op, err))
		case !present:
			gone = append(gone, e)
		}
	}
	return gone, errors.Join(errs...)
}

// deliver puts c in the channel, in place of an older value that nobody has
// read. Only the monitor sends, so that this ends.
func deliver(ch chan platform.NetChange, c platform.NetChange) {
	for {
		select {
		case ch <- c:
			return
		default:
		}
		select {
		case <-ch:
		default:
		}
	}
}

func sameChange(a, b platform.NetChange) bool {
	return a.Up == b.Up && a.Interface == b.Interface && a.Has4 == b.Has4 && a.Has6 == b.Has6 &&
		slices.Equal(a.DNS, b.DNS) && slices.Equal(a.Search, b.Search) && slices.Equal(a.Self, b.Self) &&
		slices.Equal(a.LAN, b.LAN) && slices.EqualFunc(a.Others, b.Others, func(a, b platform.Network) bool {
		return a.Interface == b.Interface && slices.Equal(a.Prefixes, b.Prefixes)
	})
}

package linux

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// What bears our name in this network, whoever of us made it.

// ownRules lists the rules that are ours, by protocol number and priority.
func ownRules() ([]netlink.Rule, error) {
	var own []netlink.Rule
	for _, family := range families() {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if r.Protocol == protoOwn && r.Priority >= prefMarked && r.Priority <= prefForward {
				r.Family = family
				own = append(own, r)
			}
		}
	}
	return own, nil
}

// ownRoutes lists the routes that are ours, by protocol number and table.
func ownRoutes() ([]netlink.Route, error) {
	var own []netlink.Route
	for _, family := range families() {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: tableOwn}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list table %d: %w", tableOwn, err)
		}
		for _, r := range routes {
			if r.Protocol == protoOwn {
				own = append(own, r)
			}
		}
	}
	return own, nil
}

// families are those that the kernel has.
func families() []int {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}

// noOtherRuns is platform.ErrRunning if a service with another state directory
// rules this network: what bears our name is then its, not a crashed run's. Its
// routes lead into its device, and that lives no longer than its process does.
func noOtherRuns() error {
	for deadline := time.Now().Add(nameWait); ; time.Sleep(20 * time.Millisecond) {
		device, err := routedDevice()
		if err != nil || device == "" {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w (with another state directory; its device is %s)", platform.ErrRunning, device)
		}
	}
}

// routedDevice is the device that our table leads into, "" without one.
func routedDevice() (string, error) {
	routes, err := ownRoutes()
	if err != nil {
		return "", err
	}
	for _, r := range routes {
		if !isDefault(r.Dst) {
			continue // into another network
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil && isTUN(link) {
			return link.Attrs().Name, nil
		}
	}
	return "", nil
}

// leftover says what of ours is in this network although everything should have
// been undone: it looks at the system, not at what was done. What could not be
// undone in resolv.conf was found by reading it back, and is in h.late.
func (h *Host) leftover() error {
	var left []string
	var errs []error
	rules, err := ownRules()
	errs = append(errs, err)
	for _, r := range rules {
		left = append(left, "ip rule "+r.String())
	}
	routes, err := ownRoutes()
	errs = append(errs, err)
	for _, r := range routes {
		left = append(left, "ip route "+r.String())
	}
	tables, _ := nftTables() // an error is no nftables, so no table
	for _, t := range tables {
		left = append(left, "nft table "+familyName(t.Family)+" "+t.Name)
	}
	if len(left) > 0 {
		errs = append(errs, errors.New("still there: "+strings.Join(left, "; ")))
	}
	return errors.Join(append(errs, h.late)...)
}

// Captures implements platform.Captor. Two addresses of each family stand for
// the internet, one in each half: routes to halves are how others take it over.
func (h *Host) Captures() error {
	name := h.captor.Load()
	if name == nil {
		return errors.New("no device of ours is in use")
	}
	for _, a := range []string{"2.2.2.2", "200.2.2.2", "2400::2", "a400::2"} {
		routes, err := netlink.RouteGet(net.ParseIP(a))
		if err != nil {
			continue // no way at all
		}
		for _, r := range routes {
			link, err := netlink.LinkByIndex(r.LinkIndex)
			if err != nil {
				return fmt.Errorf("packets to %s leave by an interface that is gone: %w", a, err)
			}
			if by := link.Attrs().Name; by != *name {
				return fmt.Errorf("packets to %s leave by %s, not by %s", a, by, *name)
			}
		}
	}
	return nil
}

// sweep removes what bears our name, for the case that no journal tells of it.
func (h *Host) sweep() error {
	rules, err := ownRules()
	if err != nil {
		return fmt.Errorf("list the policy rules: %w", err)
	}
	for _, r := range rules {
		h.log.Warn("removing a rule of ours that no journal knows", "rule", r.String())
		if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove rule %d: %w", r.Priority, err)
		}
	}
	routes, err := ownRoutes()
	if err != nil {
		return err
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove a route of table %d: %w", tableOwn, err)
		}
	}
	return deleteNFT()
}

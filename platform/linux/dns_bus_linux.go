package linux

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	busLimit = 3 * time.Second // for one exchange with a D-Bus service

	resolvedName    = "org.freedesktop.resolve1"
	resolvedPath    = dbus.ObjectPath("/org/freedesktop/resolve1")
	resolvedManager = resolvedName + ".Manager"

	nmName   = "org.freedesktop.NetworkManager"
	nmPath   = dbus.ObjectPath("/org/freedesktop/NetworkManager")
	nmGlobal = nmName + ".GlobalDnsConfiguration"
)

// onBus runs f with a connection of its own, which is closed afterwards.
// address "" is the system bus.
func onBus(address string, f func(context.Context, *dbus.Conn) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), busLimit)
	defer cancel()
	var conn *dbus.Conn
	var err error
	if address == "" {
		conn, err = dbus.ConnectSystemBus(dbus.WithContext(ctx))
	} else {
		conn, err = dbus.Connect(address, dbus.WithContext(ctx))
	}
	if err != nil {
		return fmt.Errorf("%w: connect to d-bus: %w", errLater, err)
	}
	defer conn.Close()
	return f(ctx, conn)
}

// hasOwner reports whether a service runs under that name now; it is not
// started for the question.
func hasOwner(ctx context.Context, conn *dbus.Conn, name string) bool {
	var owned bool
	err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&owned)
	return err == nil && owned
}

func resolvedAnswers(bus string) bool {
	answers := false
	_ = onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		answers = hasOwner(ctx, conn, resolvedName)
		return nil
	})
	return answers
}

// The arguments of org.freedesktop.resolve1.Manager.
type (
	linkDNS struct {
		Family  int32
		Address []byte
	}
	linkDomain struct {
		Domain      string
		RoutingOnly bool
	}
	managerDomain struct {
		Index       int32 // 0: of the service itself
		Domain      string
		RoutingOnly bool
	}
	managerDNS struct {
		Index   int32
		Family  int32
		Address []byte
	}
)

// setResolved makes the TUN the link for every name: our servers, the routing
// domain "~.", and default route. Where the machine's own setting is DNS over
// TLS or DNSSEC, the link is excepted: our server speaks plain DNS over no wire,
// and a fake address has no signature. Caches are flushed, since they hold real
// addresses. All of it goes when the link goes.
func setResolved(bus string, o op) error {
	return onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		object := conn.Object(resolvedName, resolvedPath)
		call := func(method string, args ...any) error {
			if err := object.CallWithContext(ctx, resolvedManager+"."+method, 0, args...).Err; err != nil {
				return fmt.Errorf("systemd-resolved %s: %w", method, err)
			}
			return nil
		}
		var servers []linkDNS
		for _, a := range o.Servers {
			servers = append(servers, linkDNS{familyOf(a), a.AsSlice()})
		}
		index := int32(o.Index)
		for _, method := range []string{"SetLinkDNSOverTLS", "SetLinkDNSSEC"} {
			_ = call(method, index, "no") // systemd before 239 has not the first one, nor what it is about
		}
		return errors.Join(
			call("SetLinkDNS", index, servers),
			call("SetLinkDomains", index, []linkDomain{{".", true}}),
			call("SetLinkDefaultRoute", index, true),
			call("FlushCaches"),
		)
	})
}

func familyOf(a netip.Addr) int32 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// revertResolved takes the settings off the link. It is done already if the
// link or the service is gone.
func revertResolved(bus string, o op) error {
	err := onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		if !hasOwner(ctx, conn, resolvedName) {
			return nil
		}
		object := conn.Object(resolvedName, resolvedPath)
		err := object.CallWithContext(ctx, resolvedManager+".RevertLink", 0, int32(o.Index)).Err
		var answer dbus.Error
		if errors.As(err, &answer) && strings.HasSuffix(answer.Name, ".NoSuchLink") {
			err = nil
		}
		_ = object.CallWithContext(ctx, resolvedManager+".FlushCaches", 0).Err // fake addresses mean nothing now
		return err
	})
	if errors.Is(err, errLater) {
		return nil // no bus, no systemd-resolved
	}
	return err
}

func resolvedPresent(bus string, o op) bool {
	present := true // if it cannot be told, leave it
	_ = onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		if !hasOwner(ctx, conn, resolvedName) {
			return nil
		}
		var servers []managerDNS
		object := conn.Object(resolvedName, resolvedPath)
		if err := object.StoreProperty(resolvedManager+".DNS", &servers); err != nil {
			return err
		}
		for _, want := range o.Servers {
			present = present && slices.ContainsFunc(servers, func(s managerDNS) bool {
				return int(s.Index) == o.Index && slices.Equal(s.Address, want.AsSlice())
			})
		}
		return nil
	})
	return present
}

// resolvedDomains are the domains of all links but except: those that names are
// looked up in, and those whose names go to the link's servers only.
func resolvedDomains(bus string, except int) (domains []string) {
	_ = onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		if !hasOwner(ctx, conn, resolvedName) {
			return nil
		}
		var all []managerDomain
		if err := conn.Object(resolvedName, resolvedPath).StoreProperty(resolvedManager+".Domains", &all); err != nil {
			return err
		}
		for _, d := range all {
			if int(d.Index) != except || except == 0 {
				domains = append(domains, d.Domain)
			}
		}
		return nil
	})
	return domains
}

// NetworkManager writes resolv.conf from its connections, unless it has a
// global DNS configuration, which takes their place. Setting that one (property
// GlobalDnsConfiguration, NetworkManager 1.2 and later) makes it write our
// server itself, whatever its rc-manager and dns plug-in are. It is kept on disk
// by NetworkManager, so that it has to be emptied even after a crash.

type nmConfig = map[string]dbus.Variant

func nmGlobalDNS(conn *dbus.Conn) (nmConfig, error) {
	var config nmConfig
	err := conn.Object(nmName, nmPath).StoreProperty(nmGlobal, &config)
	return config, err
}

// nmServers are the servers for all names ("*") in a global configuration.
func nmServers(config nmConfig) []string {
	domains, _ := config["domains"].Value().(map[string]dbus.Variant)
	all, _ := domains["*"].Value().(map[string]dbus.Variant)
	servers, _ := all["servers"].Value().([]string)
	return servers
}

// networkManagerFree reports whether NetworkManager runs and has no global
// configuration that an administrator made.
func networkManagerFree(bus string) bool {
	free := false
	_ = onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		if !hasOwner(ctx, conn, nmName) {
			return nil
		}
		config, err := nmGlobalDNS(conn)
		free = err == nil && len(config) == 0
		return err
	})
	return free
}

func setNetworkManager(bus string, o op) error {
	config := nmConfig{"domains": dbus.MakeVariant(map[string]dbus.Variant{
		"*": dbus.MakeVariant(map[string]dbus.Variant{"servers": dbus.MakeVariant(texts(o.Servers))}),
	})}
	if search := settings(o.File.Content, "search"); len(search) > 0 {
		config["searches"] = dbus.MakeVariant(search)
	}
	if options := settings(o.File.Content, "options"); len(options) > 0 {
		config["options"] = dbus.MakeVariant(options)
	}
	return onBus(bus, func(_ context.Context, conn *dbus.Conn) error {
		if err := conn.Object(nmName, nmPath).SetProperty(nmGlobal, dbus.MakeVariant(config)); err != nil {
			return fmt.Errorf("set networkmanager's dns: %w", err)
		}
		return nil
	})
}

// reloadNetworkManager makes it write resolv.conf again (flag DNS_RC of
// org.freedesktop.NetworkManager.Reload, version 1.22 and later).
func reloadNetworkManager(bus string) error {
	return onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		return conn.Object(nmName, nmPath).CallWithContext(ctx, nmName+".Reload", 0, uint32(2)).Err
	})
}

func texts(addrs []netip.Addr) []string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return s
}

// networkManagerDNS are the resolvers and domains of the connections that are up
// now, the one with the default route first: what it would write without us.
func networkManagerDNS(bus string) (servers []netip.Addr, domains []string) {
	_ = onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		if !hasOwner(ctx, conn, nmName) {
			return nil
		}
		var primary dbus.ObjectPath
		var active []dbus.ObjectPath
		manager := conn.Object(nmName, nmPath)
		if err := errors.Join(manager.StoreProperty(nmName+".PrimaryConnection", &primary), manager.StoreProperty(nmName+".ActiveConnections", &active)); err != nil {
			return err
		}
		for _, path := range slices.Concat([]dbus.ObjectPath{primary}, active) {
			for _, family := range []string{"4", "6"} {
				var config dbus.ObjectPath
				if conn.Object(nmName, path).StoreProperty(nmName+".Connection.Active.Ip"+family+"Config", &config) != nil || config == "/" {
					continue
				}
				object, name := conn.Object(nmName, config), nmName+".IP"+family+"Config."
				var wire [][]byte
				if family == "4" {
					var four []map[string]dbus.Variant
					_ = object.StoreProperty(name+"NameserverData", &four)
					for _, s := range four {
						text, _ := s["address"].Value().(string)
						if a, err := netip.ParseAddr(text); err == nil {
							wire = append(wire, a.AsSlice())
						}
					}
				} else {
					_ = object.StoreProperty(name+"Nameservers", &wire)
				}
				for _, b := range wire {
					if a, ok := netip.AddrFromSlice(b); ok && !slices.Contains(servers, a) {
						servers = append(servers, a)
					}
				}
				for _, property := range []string{"Domains", "Searches"} {
					var more []string
					_ = object.StoreProperty(name+property, &more)
					domains = append(domains, more...)
				}
			}
		}
		return nil
	})
	return servers[:min(len(servers), maxServers)], domains
}

// revertNetworkManager empties the global configuration if it is still ours. A
// NetworkManager that does not run keeps it on disk: errLater.
func revertNetworkManager(bus string, o op) error {
	return onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		if !hasOwner(ctx, conn, nmName) {
			return fmt.Errorf("%w: networkmanager does not run", errLater)
		}
		config, err := nmGlobalDNS(conn)
		if err != nil {
			return fmt.Errorf("read networkmanager's dns: %w", err)
		}
		if !slices.Equal(nmServers(config), texts(o.Servers)) {
			return nil
		}
		return conn.Object(nmName, nmPath).SetProperty(nmGlobal, dbus.MakeVariant(nmConfig{}))
	})
}

func networkManagerPresent(bus string, o op) bool { return networkManagerIs(bus, o, true) }

// networkManagerHas reports whether NetworkManager runs, and has our setting.
func networkManagerHas(bus string, o op) bool { return networkManagerIs(bus, o, false) }

// networkManagerIs tells whether NetworkManager has our setting; otherwise is
// the answer when it cannot be asked.
func networkManagerIs(bus string, o op, otherwise bool) bool {
	present := otherwise
	_ = onBus(bus, func(ctx context.Context, conn *dbus.Conn) error {
		if !hasOwner(ctx, conn, nmName) {
			return nil
		}
		config, err := nmGlobalDNS(conn)
		if err == nil {
			present = slices.Equal(nmServers(config), texts(o.Servers))
		}
		return err
	})
	return present
}

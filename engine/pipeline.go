package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/listener"
	"github.com/atlanticproxy/atlanticproxy/engine/netstack"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// The addresses of the TUN and of the resolver that apps are told to use.
// IPv4 is the benchmarking range (RFC 2544), which no real network may use and
// which the fake addresses come from as well; IPv6 is a unique local prefix
// (RFC 4193). The kernel path takes its translation addresses from the part
// below 198.18.1.0 and below ::1:0.
var (
	addr6    = netip.MustParsePrefix("fd61:746c:616e:7469::1/64")
	dnsAddr6 = netip.MustParseAddr("fd61:746c:616e:7469::2")
)

// What "auto" means as the TUN's MTU, in bytes. TCP ends on this machine, so its
// segments may be as large as a packet can be where the device has raw queues:
// against 1500, 8 downloads at once took three quarters of the processor time a
// byte (kernel path, 2026-11-22). What leaves the machine has the uplink's MTU
// either way.
const (
	mtuRaw    = 65535
	mtuDevice = 1500
)

// pipeline is everything that runs only while the engine does: the TUN and its
// netstack, the local proxy, and the changes to the machine.
type pipeline struct {
	dev        tun.Device // nil without a TUN
	stack      *netstack.Stack
	local      *listener.Listener // nil if not wanted
	name       string             // of the TUN
	addr4      netip.Prefix
	mtu        int
	dnsOn      bool
	warning    string                // what works less well than it could, "" if nothing
	cancel     context.CancelFunc    // ends all parts
	stop       context.CancelFunc    // ends stack alone; nil without one
	death      atomic.Pointer[error] // why a part has ended of itself; nil while none has
	redirected atomic.Bool           // new TCP connections come by the redirect

	netMu       sync.Mutex
	net         platform.NetConfig // guarded by netMu: in force, but for the redirect
	hadRedirect bool               // guarded by netMu: some flows may have come by it
	left        bool               // guarded by netMu: the machine is being restored

	wait sync.WaitGroup
	once sync.Once
}

// openPipeline brings the data path up, the machine's routes and DNS last, so
// that the first packet already finds somebody who reads it. On an error
// nothing is left.
func (e *Engine) openPipeline(ctx context.Context) (_ *pipeline, err error) {
	run, cancel := context.WithCancel(context.Background())
	p := &pipeline{cancel: cancel}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	cfg := e.opt.Config
	if cfg.Listen.Proxy != "" {
		o := listener.Options{Address: cfg.Listen.Proxy, Handler: e.flows, CarriesUDP: e.flows.CarriesUDP, Log: e.log}
		if process := processOf(e.opt.Host); process != nil && e.rules.NeedsProcess() {
			o.App = func(src, dst netip.AddrPort) string { return process("tcp", src, dst) }
		}
		if owner := ownerOf(e.opt.Host); owner != nil {
			o.User = func(n flow.Network, src, dst netip.AddrPort) (uint32, bool) { return owner(n.String(), src, dst) }
		}
		if p.local, err = listener.Listen(o); err != nil {
			return nil, fmt.Errorf("local proxy on %s: %w", cfg.Listen.Proxy, err)
		}
		p.goRun(e, run, "local proxy", p.local.Run)
	}
	p.goRun(e, run, "dns", e.dns.Run)
	if e.opt.NoTUN || !cfg.TUN.Enabled {
		if p.local == nil {
			p.warning = "nothing is carried: there is neither a TUN nor a local proxy; set [listen] proxy, or run with a TUN"
			e.log.Warn(p.warning)
		}
		return p, nil
	}
	if err = e.openTUN(ctx, run, p); err != nil {
		return nil, err
	}
	return p, nil
}

// openTUN makes the TUN and turns the machine's routes and DNS to it. The
// kernel path is proven by a connection first; where this machine's firewall
// does not let it work, "auto" means the userspace path.
func (e *Engine) openTUN(ctx, run context.Context, p *pipeline) error {
	cfg := e.opt.Config
	p.addr4 = netip.PrefixFrom(cfg.DNS.FakeRange.Masked().Addr().Next(), cfg.DNS.FakeRange.Bits())
	err := e.openStack(ctx, run, p, cfg.TUN.Stack)
	if errors.Is(err, errProbe) && cfg.TUN.Stack == "auto" {
		p.warning = slowPath(cfg.TUN.Name, err)
		err = e.openStack(ctx, run, p, "userspace")
	}
	if err != nil {
		return err
	}
	p.dnsOn = true
	p.net = platform.NetConfig{
		TUN: p.name, Addr4: p.addr4, Addr6: addr6, MTU: p.mtu,
		Default4: true, Default6: true,
		LAN: cfg.Protect.LAN,
		DNS: []netip.Addr{p.addr4.Addr().Next(), dnsAddr6},
	}
	if taker, ok := e.opt.Host.(platform.LinkDNSTaker); ok && taker.TakesLinkDNS() {
		l, err := newLinkDNS(e.dns)
		if err != nil {
			return err
		}
		p.net.LinkDNS = l.port
		p.goRun(e, run, "dns of the link", l.run)
	}
	if err := e.opt.Host.Apply(ctx, p.net); err != nil {
		return err
	}
	if p.stack.RedirectPort() != 0 {
		p.goRun(e, run, "redirect", func(ctx context.Context) error { return p.carry(ctx, e) })
	}
	return nil
}

// slowPath says why the kernel path is not used. A firewall is named only where
// it was seen at work.
func slowPath(tun string, err error) string {
	if errors.Is(err, netstack.ErrNotLetIn) {
		return "this machine's firewall drops what comes in by " + tun + ", so the slower userspace path is used; let it in for full speed"
	}
	return "the slower userspace path is used, as the kernel path failed: " + err.Error()
}

// hasAddress tells whether the interface bears a: a machine whose IPv6 is
// switched off takes no IPv6 address.
func hasAddress(name string, a netip.Addr) bool {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return false
	}
	addrs, err := i.Addrs()
	return err == nil && slices.ContainsFunc(addrs, func(have net.Addr) bool {
		p, err := netip.ParsePrefix(have.String())
		return err == nil && p.Addr() == a
	})
}

// errProbe is a kernel path that carries nothing on this machine.
var errProbe = errors.New("the kernel path does not work on this machine")

// openStack opens the device and a stack on it. On an error both are closed.
func (e *Engine) openStack(ctx, run context.Context, p *pipeline, path string) (err error) {
	queues := min(runtime.GOMAXPROCS(0), 4)
	if path == "userspace" {
		queues = 1
	}
	p.mtu = cmp.Or(e.opt.Config.TUN.MTU, mtuDevice)
	p.dev, err = e.opt.Host.OpenTUN(platform.TUNConfig{
		Name: e.opt.Config.TUN.Name, MTU: p.mtu, Queues: queues, Addr4: p.addr4, Addr6: addr6,
	})
	if err != nil {
		return err
	}
	if p.name, err = p.dev.Name(); err != nil {
		return fmt.Errorf("name of the TUN: %w", err)
	}
	if _, raw := p.dev.(platform.MultiQueue); raw {
		p.mtu = cmp.Or(e.opt.Config.TUN.MTU, mtuRaw) // Apply sets it
	}
	if p.stack, err = netstack.New(netstack.Options{
		Device: p.dev, Stack: path, Addr4: p.addr4, Addr6: addr6, MTU: p.mtu,
		Handler: e.flows, Log: e.log,
	}); err != nil {
		return err
	}
	run, p.stop = context.WithCancel(run)
	p.goRun(e, run, "tun", p.stack.Run)
	if err := p.stack.Probe(ctx); err != nil {
		p.stop() // so that its end is no failure
		p.stack.Close()
		return fmt.Errorf("%w: %w", errProbe, err)
	}
	return nil
}

// goRun runs one part until the pipeline closes; if the part ends of itself,
// the engine is told.
func (p *pipeline) goRun(e *Engine, ctx context.Context, what string, run func(context.Context) error) {
	p.wait.Add(1)
	go func() {
		defer p.wait.Done()
		err := run(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("ended unexpectedly")
		}
		err = fmt.Errorf("%s: %w", what, err)
		p.death.CompareAndSwap(nil, &err)
		select { // never blocks close
		case e.in <- died{p, err}:
		case <-ctx.Done():
		case <-e.ended:
		}
	}()
}

// close ends every flow and every part, and waits for them.
func (p *pipeline) close() {
	p.once.Do(func() {
		p.cancel()
		if p.local != nil {
			p.local.Close()
		}
		if p.stack != nil {
			p.stack.Close()
		}
		if p.dev != nil {
			p.dev.Close()
		}
		done := make(chan struct{})
		go func() { p.wait.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(5 * time.Second): // a part that hangs must not keep the machine from being restored
		}
	})
}

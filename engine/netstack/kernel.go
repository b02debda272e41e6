package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	sweepEvery = 2 * time.Second
)

// kernel is the kernel path. One goroutine per queue reads packets and deals
// with each on the spot; only a new flow gets a goroutine.
type kernel struct {
	device  tun.Device
	queues  []platform.Queue
	handler flow.Handler
	log     *slog.Logger
	mtu     int
	start   time.Time

	v4, v6   *family   // nil if the family is off
	redirect *redirect // nil if it cannot be
	tcp      *table[tcpFlow]
	udp      *table[udpSession]
	frags    reassembler
	fragID   atomic.Uint32

	pool     pools
	bursts   sync.Pool   // *burst
	cutUDP   atomic.Bool // the device takes no datagrams joined in one packet
	counters counters

	probes    atomic.Int64       // whose SYN came by the TUN
	pending   atomic.Int64       // handshakes held
	pendingTo [1024]atomic.Int64 // of them, by hash of the destination

	queued      budget // datagrams waiting for handlers
	udpHandlers atomic.Int64
	evicting    sync.Mutex // one eviction at a time

	gate   sync.Mutex // makes "still running" and flows.Add one step
	ending bool       // guarded by gate
	flows  sync.WaitGroup
	done   chan struct{} // closed when flows are to end
	close  func() error  // idempotent
}

// counters count what was not carried, for Stats.
type counters struct {
	malformed, ignored, refused, full, udpDropped, udpEvicted, writeErrors atomic.Uint64
}

func (c *counters) stats() Stats {
	return Stats{
		Malformed: c.malformed.Load(), Ignored: c.ignored.Load(), Refused: c.refused.Load(), Full: c.full.Load(),
		UDPDropped: c.udpDropped.Load(), UDPEvicted: c.udpEvicted.Load(), WriteErrors: c.writeErrors.Load(),
	}
}

// newKernel opens the listeners; it starts no goroutine.
func newKernel(o Options, queues []platform.Queue) (*kernel, error) {
	name, err := o.Device.Name()
	if err != nil {
		return nil, fmt.Errorf("name of the tun device: %w", err)
	}
	k, err := newTranslator(o)
	if err != nil {
		return nil, err
	}
	k.device = o.Device
	for _, q := range queues {
		k.queues = append(k.queues, newQuietQueue(q))
	}
	for _, f := range k.families() {
		err := f.listen(name)
		if f.v6 && errors.Is(err, syscall.EAFNOSUPPORT) {
			k.v6 = nil // a system without IPv6 (ipv6.disable=1): no packet of it will come
			continue
		}
		if err != nil {
			k.closeListeners()
			return nil, err
		}
	}
	if k.redirect, err = newRedirect(k); err != nil {
		k.log.Warn("no connections can be redirected to us", "err", err)
	}
	k.close = sync.OnceValue(func() error {
		k.closeListeners()
		if k.redirect != nil {
			k.redirect.close()
		}
		if err := k.device.Close(); err != nil {
			return fmt.Errorf("close tun device: %w", err)
		}
		return nil
	})
	return k, nil
}

// newTranslator makes a kernel without device, queues and listeners.
func newTranslator(o Options) (*kernel, error) {
	k := &kernel{
		handler: o.Handler, log: o.Log, mtu: max(o.MTU, 1280), start: time.Now(),
		tcp: newTable[tcpFlow](), udp: newTable[udpSession](),
		queued: budget{max: queueBytes}, done: make(chan struct{}),
	}
	k.frags.pool = &k.pool
	for _, prefix := range []netip.Prefix{o.Addr4, o.Addr6} {
		if !prefix.IsValid() {
			continue
		}
		f, err := newFamily(prefix)
		if err != nil {
			return nil, err
		}
		if f.v6 {
			k.v6 = f
		} else {
			k.v4 = f
		}
	}
	return k, nil
}

func (k *kernel) families() []*family {
	var fs []*family
	for _, f := range []*family{k.v4, k.v6} {
		if f != nil {
			fs = append(fs, f)
		}
	}
	return fs
}

func (k *kernel) closeListeners() {
	for _, f := range k.families() {
		if f.listener != nil {
			f.listener.Close()
		}
	}
}

func (k *kernel) Close() error { return k.close() }

// Run implements Stack.Run. It ends in this order: no new flows; handlers are
// cancelled and may still send FIN or RST to their apps; the device closes,
// which ends the readers; what is left is waited for.
func (k *kernel) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var io sync.WaitGroup
	for _, q := range k.queues {
		io.Go(func() { cancel(k.read(ctx, q)) })
	}
	for _, f := range k.families() {
		io.Go(func() { k.accept(f) })
	}
	if k.redirect != nil {
		io.Go(func() { k.redirect.run(ctx) })
	}
	io.Go(func() { k.sweep(ctx) })

	<-ctx.Done()
	k.gate.Lock()
	k.ending = true
	k.gate.Unlock()
	close(k.done)
	k.udp.each(func(_ tuple, s *udpSession) { s.Close() })
	k.waitFlows(flow.EndWithin)
	closeErr := k.close()
	io.Wait()
	k.flows.Wait()

	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return closeErr
}

// waitFlows waits for the flows, but no longer than limit.
func (k *kernel) waitFlows(limit time.Duration) {
	ended := make(chan struct{})
	go func() { k.flows.Wait(); close(ended) }() // Run waits for the same group in the end
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		k.log.Warn("flows are slow to end", "after", limit)
	}
}

// spawn runs f as a flow, and reports false if the stack is ending.
func (k *kernel) spawn(f func()) bool {
	k.gate.Lock()
	defer k.gate.Unlock()
	if k.ending {
		return false
	}
	k.flows.Go(f)
	return true
}

// take deals with one packet, raw with its virtio_net_hdr, that b's queue has
// given. It may change raw; what b holds then points into it.
func (k *kernel) take(ctx context.Context, b *burst, raw []byte) {
	q := b.queue
	p, ok := parse(raw)
	if !ok {
		k.counters.malformed.Add(1)
		return
	}
	f := k.v4
	if p.v6 {
		f = k.v6
	}
	if f == nil || !f.carries(&p) {
		k.counters.ignored.Add(1)
		return
	}
	if p.fragment {
		whole := k.frags.add(&p, k.now())
		if whole == nil {
			return
		}
		defer k.pool.put(whole)
		defer b.flush() // before that
		if p, ok = parse(whole.data()); !ok || p.fragment {
			k.counters.malformed.Add(1)
			return
		}
	}
	switch {
	case p.proto == protoTCP && len(p.transport()) >= tcpBytes:
		k.packetTCP(ctx, q, f, &p)
	case p.proto == protoUDP && len(p.transport()) >= udpBytes:
		k.packetUDP(ctx, b, &p)
	case p.proto == protoICMP && !p.v6 || p.proto == protoICMP6 && p.v6:
		k.packetICMP(q, &p)
	default:
		k.counters.ignored.Add(1)
	}
}

// now is the time since start, on the monotonic clock.
func (k *kernel) now() time.Duration { return time.Since(k.start) }

// write hands a packet to the kernel.
func (k *kernel) write(q platform.Queue, raw []byte) {
	if _, err := q.Write(raw); err != nil {
		k.counters.writeErrors.Add(1)
	}
}

// sweep forgets what has gone quiet.
func (k *kernel) sweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			now := k.now()
			k.expireTCP(now)
			k.expireUDP(now)
			k.frags.expire(now)
		}
	}
}

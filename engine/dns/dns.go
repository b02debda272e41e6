// Package dns is the resolver that apps talk to.
//
//	app ─► HandlePackets / HandleStream ─► Answer
//	                                        ├ what was asked before       quick, without decoding
//	                                        ├ special names (RFC 6761 …)  here
//	                                        ├ local names                 Options.Local
//	                                        ├ A, AAAA, HTTPS in fake-ip   fakeMap, no round trip
//	                                        └ the rest                    cache ─► Options.Exchange
//	flow to a fake address ─► Lookup ─► the name, for the upstream
//
// In fake-ip mode every host name gets an address out of a private range at
// once, and the flow that comes to that address goes to the upstream under the
// name the app asked for, whatever CNAMEs lead away from it. In real mode all
// names are resolved by Exchange, and Lookup remembers which name led to an
// address.
//
// Client is the other side: it asks encrypted (or plain) servers by a dialer
// that the engine gives it. The engine imports this package; of ours it needs
// flow.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Modes of Options.Mode.
const (
	FakeIP = "fake-ip"
	Real   = "real"
)

// Bounds. Times are of one query or connection.
const (
	answerTimeout  = 4800 * time.Millisecond // then SERVFAIL: apps give up at 5 s
	streamIdle     = 10 * time.Second        // RFC 7766 section 6.2.3
	packetIdle     = 20 * time.Second
	streamParallel = 32
	packetParallel = 256
	maxQueryBytes  = 4096 // over UDP; each socket holds a buffer of it
	saveDelay      = 5 * time.Second
	maxNames       = 100_000 // in the fake map
	maxRemembered  = 50_000  // addresses in real mode
	cacheBytes     = 8 << 20
	reuseAfter     = 10 * time.Minute // a fake address stays with its name at least so long after its last use
)

var errIgnored = errors.New("not a query")

// ErrNoSuchName makes the Server answer that a name does not exist.
var ErrNoSuchName = errors.New("no such name")

// Options of a Server. The functions are called concurrently.
type Options struct {
	Mode string // fake-ip, real
	// Fake4 and Fake6 are the ranges of fake addresses; invalid means that
	// the family is off. The first 256 of Fake4 and the first 2^32 of Fake6
	// are left to the TUN itself.
	Fake4, Fake6 netip.Prefix
	File         string // where the mapping is kept; "" means memory only
	// Exchange asks the configured servers: packed query in, packed answer out.
	Exchange func(ctx context.Context, query []byte) ([]byte, error)
	// Local asks the resolvers that the machine had, for local names. It fails
	// with ErrNoSuchName where none of them can know such a name. Nil
	// means that there are none.
	Local func(ctx context.Context, query []byte) ([]byte, error)
	// Refuse says that no answer of Exchange may lead from name to an address:
	// a page could reach the user's own machines by it (DNS rebinding). Nil
	// means all addresses but public ones.
	Refuse func(name string, a netip.Addr) bool
	Log    *slog.Logger
}

// Server answers queries. It is safe for concurrent use.
type Server struct {
	opt    Options
	fake   *fakeMap
	real   *memory
	cache  *cache
	noData []byte                   // the records of a negative answer, packed
	search atomic.Pointer[[]string] // the network's own domains; nil if there are none
	dirty  chan struct{}            // of one: the mapping has changed
	saveMu sync.Mutex

	buffers sync.Pool // *[maxQueryBytes]byte
}

var _ flow.Handler = (*Server)(nil)

// New makes a Server and reads the mapping of the last run; it starts nothing.
// A mapping that cannot be read is logged and begun anew.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Mode != FakeIP && o.Mode != Real {
		return nil, fmt.Errorf("dns mode %q is neither fake-ip nor real", o.Mode)
	}
	if o.Exchange == nil {
		return nil, errors.New("dns: Options.Exchange is missing")
	}
	if o.Refuse == nil {
		o.Refuse = func(_ string, a netip.Addr) bool { return ScopeOf(a) != Public }
	}
	fake, err := newFakeMap(o.Fake4, o.Fake6)
	if err != nil {
		return nil, err
	}
	if o.Mode == FakeIP && !o.Fake4.IsValid() && !o.Fake6.IsValid() {
		return nil, errors.New("fake-ip mode without a range of fake addresses")
	}
	none := new(dns.Msg)
	nothing(none, dns.RcodeSuccess)
	packed, err := none.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack the negative answer: %w", err)
	}
	s := &Server{opt: o, fake: fake, real: newMemory(), cache: newCache(), noData: packed[headBytes:], dirty: make(chan struct{}, 1)}
	s.buffers.New = func() any { return new([maxQueryBytes]byte) }
	if o.File != "" && o.Mode == FakeIP {
		if err := s.load(); err != nil {
			o.Log.Warn("dns: the saved names are lost, starting empty", "file", o.File, "err", err)
		}
	}
	return s, nil
}

// SetNetwork tells that the machine is in another network, which has domains of
// its own (canonical). What the former one has answered is forgotten.
func (s *Server) SetNetwork(search []string) {
	if len(search) == 0 {
		s.search.Store(nil)
	} else {
		s.search.Store(&search)
	}
	s.cache.clear()
}

// Lookup tells which name an address stands for. fake says that the address is
// in a fake range, so that it leads nowhere by itself; name is "" if nobody
// has asked for it. A real address has a name only if exactly one name has led
// to it while its TTL lasts.
func (s *Server) Lookup(a netip.Addr) (name string, fake bool) {
	a = a.Unmap()
	if s.fake.contains(a) {
		return s.fake.name(a), true
	}
	return s.real.name(a), false
}

// Run saves the mapping some seconds after it changed, and once at the end. It
// returns nil when ctx ends, unless the last save failed.
func (s *Server) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return s.Save()
		case <-s.dirty:
		}
		select {
		case <-ctx.Done():
			return s.Save()
		case <-time.After(saveDelay):
		}
		if err := s.Save(); err != nil {
			s.opt.Log.Warn("dns: names are not saved", "err", err)
		}
	}
}

func (s *Server) changed() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

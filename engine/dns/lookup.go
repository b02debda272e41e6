package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxKnownAddrs = 1024
	maxCNAMEs     = 16 // followed in one answer, and asked for beyond it

	// familyPatience is how much longer than for one family's addresses a lookup
	// waits for the other's: some resolvers never answer AAAA (RFC 8305 section
	// 3). What is known then is known for halfTTL at most.
	familyPatience = 250 * time.Millisecond
	halfTTL        = 10 * time.Second
)

type knownAddrs struct {
	addrs   []netip.Addr
	expires time.Time
}

// LookupNetIP returns the addresses of name, IPv4 first, following CNAMEs. It
// asks for both families at once, succeeds if one does, and then does not wait
// long for the other. It keeps what it found for the TTL. A name that does not exist is a *net.DNSError with
// IsNotFound.
func (c *Client) LookupNetIP(ctx context.Context, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	key := canonical(name)
	c.mu.Lock()
	known, ok := c.addrs[key]
	c.mu.Unlock()
	if ok && time.Now().Before(known.expires) {
		return slices.Clone(known.addrs), nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var found [2][]netip.Addr
	var ttls [2]time.Duration
	var errs [2]error
	var wg sync.WaitGroup
	for i, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		wg.Go(func() {
			found[i], ttls[i], errs[i] = c.resolve(ctx, key, qtype)
			if len(found[i]) > 0 {
				time.AfterFunc(familyPatience, cancel)
			}
		})
	}
	wg.Wait()
	addrs := append(found[0], found[1]...)
	if len(addrs) == 0 {
		if err := errors.Join(errs[0], errs[1]); err != nil {
			return nil, &net.DNSError{Err: err.Error(), Name: name, IsTemporary: true, UnwrapErr: err}
		}
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	switch {
	case errs[0] != nil:
		c.know(key, addrs, min(ttls[1], halfTTL))
	case errs[1] != nil:
		c.know(key, addrs, min(ttls[0], halfTTL))
	default:
		c.know(key, addrs, min(ttls[0], ttls[1]))
	}
	return slices.Clone(addrs), nil
}

func (c *Client) know(name string, addrs []netip.Addr, ttl time.Duration) {
	if ttl <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.addrs) >= maxKnownAddrs {
		for k := range c.addrs { // any one
			delete(c.addrs, k)
			break
		}
	}
	c.addrs[name] = knownAddrs{addrs, time.Now().Add(ttl)}
}

// resolve returns the addresses of one family; none and no error if there are
// none.
func (c *Client) resolve(ctx context.Context, name string, qtype uint16) ([]netip.Addr, time.Duration, error) {
	ttl := maxTTL
	for range maxCNAMEs {
		q := new(dns.Msg)
		q.SetQuestion(dns.Fqdn(name), qtype)
		q.SetEdns0(ourUDPSize, false)
		packed, err := q.Pack()
		if err != nil {
			return nil, 0, err
		}
		b, err := c.Exchange(ctx, packed)
		if err != nil {
			return nil, 0, err
		}
		r := new(dns.Msg)
		if err := r.Unpack(b); err != nil {
			return nil, 0, err
		}
		if r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
			return nil, 0, errors.New("the server says " + dns.RcodeToString[r.Rcode])
		}
		addrs, last, answerTTL := chain(r, name)
		ttl = min(ttl, answerTTL)
		if len(addrs) > 0 || last == name || r.Rcode == dns.RcodeNameError {
			return addrs, ttl, nil
		}
		name = last
	}
	return nil, 0, errors.New("too many CNAMEs")
}

// chain follows CNAMEs from name through an answer to the addresses of the
// last name.
func chain(r *dns.Msg, name string) (addrs []netip.Addr, last string, ttl time.Duration) {
	ttl = maxTTL
	for range 128 { // RFC 1034 sets no limit; a loop ends here
		next := ""
		for _, rr := range r.Answer {
			if canonical(rr.Header().Name) != name {
				continue
			}
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
			if a, ok := addrOf(rr); ok {
				addrs = append(addrs, a)
			} else if cname, ok := rr.(*dns.CNAME); ok {
				next = canonical(cname.Target)
			}
		}
		if len(addrs) > 0 || next == "" || next == name {
			return addrs, name, ttl
		}
		name = next
	}
	return nil, name, ttl
}

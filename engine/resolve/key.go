package resolve

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"sync/atomic"

	"golang.org/x/net/publicsuffix"
)

// keyCache remembers what keys come to, so that Pick need not look for a
// registrable domain. It loses entries to newer ones; a lost one is computed
// again.
type keyCache struct {
	seed  maphash.Seed
	slots [keySlots]atomic.Pointer[keyInfo]
}

const (
	keySlots = 4096
	keyWays  = 4 // a key may stand in any of so many neighbours
)

// keyInfo is a Key and what follows from it. It is immutable.
type keyInfo struct {
	app, domain string // as given
	group       string // registrable domain, or the address, or the name itself
	appHash     uint64 // hashes are the same on every start
	groupHash   uint64
	hash        uint64 // of app and group
}

func (c *keyCache) info(k Key) *keyInfo {
	h := maphash.String(c.seed, k.Domain) ^ maphash.String(c.seed, k.App)*31
	set := c.slots[h%keySlots/keyWays*keyWays:][:keyWays]
	to := h >> 32 % keyWays // whom to replace if all are taken
	for i := range set {
		ki := set[i].Load()
		if ki == nil {
			to = uint64(i)
			break
		}
		if ki.domain == k.Domain && ki.app == k.App {
			return ki
		}
	}
	ki := newKeyInfo(k)
	set[to].Store(ki)
	return ki
}

func newKeyInfo(k Key) *keyInfo {
	ki := &keyInfo{app: k.App, domain: k.Domain, group: groupOf(k.Domain)}
	ki.appHash, ki.groupHash = hashOf(ki.app), hashOf(ki.group)
	ki.hash = hashOf(ki.app, ki.group)
	return ki
}

// groupOf is the registrable domain of a name: example.co.uk for
// www.example.co.uk. Addresses, and names that have none, stand for themselves.
func groupOf(domain string) string {
	name := strings.ToLower(strings.TrimSuffix(domain, "."))
	if a, err := netip.ParseAddr(name); err == nil {
		return a.Unmap().String()
	}
	if group, err := publicsuffix.EffectiveTLDPlusOne(name); err == nil {
		return group
	}
	return name
}

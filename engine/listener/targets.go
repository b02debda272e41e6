package listener

import (
	"bufio"
	"container/list"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// How many connections to targets are kept without a request: of one user to one
// target, in all, and of one app connection as its own.
const (
	maxIdlePerHost = 32
	maxIdleInAll   = 256
	maxBound       = 4
)

// sharer is who may use a connection to a target after each other: the
// connections of one app, or of all apps of one user where rules do not ask for
// the app. Different users never do.
type sharer struct {
	user  uint32
	app   string   // as Options.App names it
	alone *appConn // set where the user cannot be told: nobody else then
}

type targetKey struct {
	who sharer
	to  flow.Target
}

// target is a connection to a target: a flow of its own, whose other end the
// Handler has.
type target struct {
	*pipe
	r      *bufio.Reader
	body   body // of the response under way
	key    targetKey
	of     uint64 // the targets.generation that it belongs to
	bound  bool   // a login may have made it one app connection's own
	used   bool   // it has served a request
	drop   func() // closes it if it is idle
	expiry *time.Timer
	at     *list.Element // in targets.oldest, while idle
}

// targets are the connections that wait for a request.
type targets struct {
	mu         sync.Mutex
	closed     bool                    // guarded by mu
	generation uint64                  // guarded by mu; of before, none is kept
	idle       map[targetKey][]*target // guarded by mu; the last one is taken first
	oldest     list.List               // guarded by mu; of *target, idle longest first
}

// take returns a connection that is open still, nil if there is none.
func (p *targets) take(key targetKey) *target {
	for {
		p.mu.Lock()
		some := p.idle[key]
		if len(some) == 0 {
			p.mu.Unlock()
			return nil
		}
		t := some[len(some)-1]
		p.remove(t)
		p.mu.Unlock()
		if t.wake() {
			return t
		}
		t.Close()
	}
}

// wake ends the idle time; false if the target has closed, or said what nobody
// asked for.
func (t *target) wake() bool {
	t.expiry.Stop()
	return t.whenChanged(nil) && t.r.Buffered() == 0
}

// add keeps t for a while, until it is taken.
func (p *targets) add(t *target) {
	var over *target
	p.mu.Lock()
	some := p.idle[t.key]
	if p.closed || t.of != p.generation || len(some) >= maxIdlePerHost || !t.whenChanged(t.drop) {
		over = t
	} else {
		if p.oldest.Len() >= maxIdleInAll {
			over = p.oldest.Front().Value.(*target)
			p.remove(over)
		}
		if p.idle == nil {
			p.idle = make(map[targetKey][]*target)
		}
		p.idle[t.key] = append(some, t)
		t.at = p.oldest.PushBack(t)
		t.expiry.Reset(flow.TargetIdle)
	}
	p.mu.Unlock()
	if over != nil {
		over.Close()
	}
}

// drop closes t if it is idle.
func (p *targets) drop(t *target) {
	p.mu.Lock()
	idle := t.at != nil
	if idle {
		p.remove(t)
	}
	p.mu.Unlock()
	if idle {
		t.Close()
	}
}

// adopt makes a target of a connection that has been opened for key.
func (p *targets) adopt(conn *pipe, key targetKey, of uint64) *target {
	t := &target{pipe: conn, r: bufio.NewReader(conn), key: key, of: of}
	t.drop = func() { p.drop(t) }
	t.expiry = time.AfterFunc(flow.TargetIdle, t.drop)
	t.expiry.Stop()
	return t
}

// remove takes t out. The caller holds mu.
func (p *targets) remove(t *target) {
	p.oldest.Remove(t.at)
	t.at = nil
	some := p.idle[t.key]
	for i := range some {
		if some[i] == t {
			some = append(some[:i], some[i+1:]...)
			break
		}
	}
	if len(some) == 0 {
		delete(p.idle, t.key)
	} else {
		p.idle[t.key] = some
	}
}

// forget lets no request that comes from now on have a connection that is open
// already. One in use closes when its response has ended.
func (p *targets) forget() {
	p.mu.Lock()
	p.generation++
	var all []*target
	for e := p.oldest.Front(); e != nil; e = p.oldest.Front() {
		t := e.Value.(*target)
		p.remove(t)
		all = append(all, t)
	}
	p.mu.Unlock()
	for _, t := range all {
		t.Close()
	}
}

// close is forget for ever.
func (p *targets) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.forget()
}

// now is the generation of connections that are opened now.
func (p *targets) now() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.generation
}

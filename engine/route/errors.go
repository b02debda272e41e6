package route

import (
	"container/list"
	"sync"
)

// maxErrors is how many hosts' last errors are remembered.
const maxErrors = 256

// lastErrors remembers the last error of each host, the most recent hosts
// only. The zero value is ready.
type lastErrors struct {
	mu     sync.Mutex
	byHost map[string]*list.Element // guarded by mu; values are *hostError
	order  list.List                // guarded by mu; most recent first
}

type hostError struct{ host, text string }

func (e *lastErrors) put(host, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byHost == nil {
		e.byHost = make(map[string]*list.Element)
	}
	if el, ok := e.byHost[host]; ok {
		el.Value.(*hostError).text = text
		e.order.MoveToFront(el)
		return
	}
	e.byHost[host] = e.order.PushFront(&hostError{host, text})
	if e.order.Len() > maxErrors {
		e.drop(e.order.Back())
	}
}

func (e *lastErrors) drop(el *list.Element) {
	e.order.Remove(el)
	delete(e.byHost, el.Value.(*hostError).host)
}

func (e *lastErrors) forget(host string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if el, ok := e.byHost[host]; ok {
		e.drop(el)
	}
}

func (e *lastErrors) get(host string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if el, ok := e.byHost[host]; ok {
		return el.Value.(*hostError).text
	}
	return ""
}

//go:build !linux

package upstream

import (
	"errors"
	"net"
	"os"
	"time"
)

// canPeek says that a peeker sees what was received without consuming it.
const canPeek = false

// peeker can do little here: looking at a connection costs a short wait, so
// that only one that is about to be used is looked at.
type peeker struct{ c *net.TCPConn }

func newPeeker(c *net.TCPConn) *peeker { return &peeker{c} }

func (p *peeker) peek([]byte) (int, error) { return 0, errors.ErrUnsupported }

// alive says that the other end has neither closed the connection nor sent
// anything; with maySpeak it believes so.
func (p *peeker) alive(maySpeak bool) bool {
	if maySpeak {
		return true
	}
	var b [1]byte
	_ = p.c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := p.c.Read(b[:])
	_ = p.c.SetReadDeadline(time.Time{})
	return errors.Is(err, os.ErrDeadlineExceeded)
}

package proxy

import (
	"crypto/tls"
	"io"
	"net"
	"time"
)

type closeWriter interface{ CloseWrite() error }

// relay copies both ways until both sides have ended, passing each side's FIN
// on (RFC 9293 section 3.6). Two TCP connections are spliced by the kernel. An
// error on either side ends both, with an RST where the error was one; but what
// a target has answered is carried, although it takes no more (RFC 9112 section
// 9.6).
func relay(client net.Conn, early []byte, target net.Conn) error {
	client.SetDeadline(time.Time{})
	up := make(chan error, 1)
	go func() { // ends when either connection does; waited for below
		var err error
		if len(early) > 0 {
			_, err = target.Write(early)
		}
		if err == nil {
			_, err = io.Copy(target, client)
		}
		if err != nil {
			_, _ = io.Copy(io.Discard, client) // ends at once if the client is at fault
		}
		up <- finish(err, client, target)
	}()
	_, err := io.Copy(client, target)
	err = finish(err, target, client)
	if upErr := <-up; err == nil {
		err = upErr
	}
	return err
}

// finish ends one direction: a FIN for a FIN, an RST for anything else.
func finish(err error, from, to net.Conn) error {
	if err == nil {
		if cw, ok := to.(closeWriter); ok {
			return cw.CloseWrite()
		}
		return to.Close()
	}
	for _, c := range []net.Conn{to, from} {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn() // a reset has no close_notify
		}
		if t, ok := c.(*net.TCPConn); ok {
			t.SetLinger(0)
		}
		c.Close()
	}
	return err
}

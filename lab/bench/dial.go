package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"time"
)

// patience of an app with one request.
const patience = 15 * time.Second

// dialer opens connections as an app does: straight, or by speaking to a proxy
// itself, each step after the reply to the one before.
type dialer struct {
	via *url.URL // nil for none
	tls *tls.Config
}

func newDialer(via, caFile string) (*dialer, error) {
	d := &dialer{tls: &tls.Config{NextProtos: []string{"http/1.1"}}}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		d.tls.RootCAs = x509.NewCertPool()
		if !d.tls.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificates in %s", caFile)
		}
	}
	if via == "" {
		return d, nil
	}
	u, err := url.Parse(via)
	d.via = u
	return d, err
}

// Dial connects to host:port; the deadline for all of it is patience.
func (d *dialer) Dial(ctx context.Context, address string) (net.Conn, error) {
	return d.DialEarly(ctx, address, nil)
}

// DialEarly is Dial that sends early together with the request to the proxy.
func (d *dialer) DialEarly(ctx context.Context, address string, early []byte) (net.Conn, error) {
	first := address
	if d.via != nil {
		first = d.via.Host
	}
	dial := net.Dialer{Timeout: patience}
	dial.SetMultipathTCP(false) // the paths under test are plain TCP
	c, err := dial.DialContext(ctx, "tcp", first)
	if err != nil || d.via == nil {
		return c, err
	}
	c.SetDeadline(time.Now().Add(patience))
	if d.via.Scheme == "https" {
		config := d.tls.Clone()
		config.ServerName = d.via.Hostname()
		c = tls.Client(c, config)
	}
	if d.via.Scheme == "socks5" {
		err = socks5(c, address, early)
	} else {
		err = connect(c, address, early)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("through %s: %w", d.via.Redacted(), err)
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// connect is RFC 9110 section 9.3.6. No proxy sends anything of its own after
// its answer's head; with early data the target does, so that the head is read
// byte by byte then.
func connect(c net.Conn, address string, early []byte) error {
	request := fmt.Sprintf("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", address, address)
	if _, err := c.Write(append([]byte(request), early...)); err != nil {
		return err
	}
	var head []byte
	buf, room := make([]byte, 4<<10), 4<<10
	if early != nil {
		room = 1
	}
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		n, err := c.Read(buf[:room])
		if err != nil {
			return err
		}
		if head = append(head, buf[:n]...); len(head) > 64<<10 {
			return errors.New("the answer has no end")
		}
	}
	if len(head) < 12 || string(head[9:12]) != "200" {
		line, _, _ := bytes.Cut(head, []byte("\r\n"))
		return fmt.Errorf("CONNECT: %s", line)
	}
	return nil
}

// socks5 is RFC 1928 without authentication, for addresses and names.
func socks5(c net.Conn, address string, early []byte) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		return err
	}
	request := []byte{5, 1, 0}
	if ip, err := netip.ParseAddr(host); err != nil {
		request = append(append(request, 3, byte(len(host))), host...)
	} else if ip.Is4() {
		request = append(append(request, 1), ip.AsSlice()...)
	} else {
		request = append(append(request, 4), ip.AsSlice()...)
	}
	request = binary.BigEndian.AppendUint16(request, uint16(number))
	var reply [10]byte
	if _, err := c.Write([]byte{5, 1, 0}); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, reply[:2]); err != nil {
		return err
	}
	if _, err := c.Write(append(request, early...)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, reply[:]); err != nil {
		return err
	}
	if reply[1] != 0 {
		return fmt.Errorf("SOCKS5 reply %d", reply[1])
	}
	if reply[3] == 4 { // an IPv6 address is longer than we have read
		_, err = io.ReadFull(c, make([]byte, 12))
	}
	return err
}

package listener

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// associate asks for a UDP association and returns its two sockets.
func associate(t *testing.T, proxy string) (control net.Conn, app *net.UDPConn) {
	t.Helper()
	control, relay := associateFrom(t, proxy, "\x00\x00\x00\x00\x00\x00")
	app, err := net.DialUDP("udp", nil, relay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { app.Close() })
	app.SetDeadline(time.Now().Add(5 * time.Second))
	return control, app
}

// associateFrom asks for one for datagrams from an IPv4 address and port.
func associateFrom(t *testing.T, proxy, from string) (control net.Conn, relay *net.UDPAddr) {
	t.Helper()
	control, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	control.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(control, "\x05\x01\x00\x05\x03\x00\x01"+from)
	answer := make([]byte, 2+10)
	if _, err := io.ReadFull(control, answer); err != nil {
		t.Fatal(err)
	}
	bound, err := readSOCKSAddr(bytes.NewReader(answer[5:]))
	if err != nil || answer[3] != replySucceeded || bound.host != "127.0.0.1" || bound.port == 0 {
		t.Fatalf("reply %x, %v", answer, err)
	}
	return control, &net.UDPAddr{IP: net.ParseIP(bound.host), Port: int(bound.port)}
}

const toEcho = "\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x35"

// TestAssociationIsItsAskers: a datagram of another user, or from another port
// than the app has named, does not take an association, though it comes first.
func TestAssociationIsItsAskers(t *testing.T) {
	proxy := startWith(t, Options{Handler: &direct{}, User: owners(t)})
	echo := func(c net.Conn, payload string, want bool) {
		t.Helper()
		io.WriteString(c, toEcho+payload)
		limit := 10 * time.Second
		if !want {
			limit = 50 * time.Millisecond // the kernel has it at once
		}
		c.SetReadDeadline(time.Now().Add(limit))
		b := make([]byte, 100)
		if n, err := c.Read(b); want != (err == nil) || want && string(b[:n]) != toEcho+payload {
			t.Errorf("%s: %q, %v", payload, b[:n], err)
		}
	}
	_, relay := associateFrom(t, proxy, "\x00\x00\x00\x00\x00\x00")
	app, err := net.DialUDP("udp", nil, relay)
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	echo(dialAs(t, 65534, "udp", relay.String()), "another user's", false)
	gone := dialAs(t, 65534, "udp", relay.String())
	io.WriteString(gone, toEcho+"nobody's any more")
	gone.Close()
	echo(app, "the app's", true)

	for _, address := range []string{"\x00\x00\x00\x00", "\x7f\x00\x00\x01", "\x08\x08\x08\x08"} {
		app, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		port := app.LocalAddr().(*net.UDPAddr).Port
		app.Close()
		_, relay := associateFrom(t, proxy, address+string([]byte{byte(port >> 8), byte(port)}))
		other, err := net.DialUDP("udp", nil, relay)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		named := address != "\x08\x08\x08\x08" // the target's address tells nothing of the app
		echo(other, "from another port", !named)
		app, err = net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}, relay)
		if err != nil {
			t.Fatal(err)
		}
		defer app.Close()
		echo(app, "from its port", named)
	}
}

func TestUDPAssociation(t *testing.T) {
	d := &direct{}
	control, app := associate(t, start(t, d))
	buf := make([]byte, 65535)
	echo := func(head, payload string) {
		t.Helper()
		app.Write([]byte(head + payload))
		n, err := app.Read(buf)
		if err != nil || string(buf[:n]) != head+payload {
			t.Errorf("%q: got %q, %v", head, buf[:min(n, 60)], err)
		}
	}
	app.Write([]byte("\x00\x00\x01\x01\x7f\x00\x00\x01\x00\x35fragment")) // dropped, as the next two
	app.Write([]byte("\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x00port 0"))
	app.Write([]byte("\x00\x00"))
	echo("\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x35", "hello")
	echo("\x00\x00\x00\x03\x09name.test\x01\xbb", "by name")
	echo("\x00\x00\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x35", string(make([]byte, 20000)))
	if f := d.last(); d.count() != 1 || f.Network != flow.UDP || f.Inbound != flow.SOCKS5 || f.Target.String() != "127.0.0.1:53" || flow.AddrPortOf(app.LocalAddr()) != f.Src {
		t.Errorf("%d flows, last %+v", d.count(), f)
	}

	stranger, err := net.Dial("udp", app.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.Write([]byte("\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x35stolen"))
	stranger.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := stranger.Read(buf); err == nil {
		t.Errorf("another program got %q", buf[:n])
	}

	// The Handler ends the flow; the association goes on with another.
	app.Write([]byte("\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x35end"))
	time.Sleep(20 * time.Millisecond)
	echo("\x00\x00\x00\x03\x0aother.test\x00\x35", "again")
	if f := d.last(); d.count() != 2 || f.Target.String() != "other.test:53" {
		t.Errorf("%d flows, last %+v", d.count(), f)
	}

	control.Close()
	for range 100 { // the relay socket goes away: the kernel says so
		time.Sleep(10 * time.Millisecond)
		if _, err := app.Write([]byte("x")); err != nil {
			return
		}
	}
	t.Error("the association outlives its TCP connection")
}

func TestSlowAppIsCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: takes 10 s")
	}
	t.Parallel()
	l, err := Listen(Options{Address: "127.0.0.1:0", Handler: &direct{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	starts := []string{"", "C", "CONNECT a.test:1 HTTP/1.1\r\nX", "GET http://a/ HT", "\x05", "\x05\x01\x00\x05\x01"}
	cut := make(chan string, len(starts))
	for _, s := range starts {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			io.WriteString(conn, s)
			io.Copy(io.Discard, conn)
			cut <- s
		}()
	}
	limit := time.After(flow.SayWithin + 3*time.Second)
	for range starts {
		select {
		case <-cut:
		case <-limit:
			t.Fatal("a connection that says nothing is still open")
		}
	}
}

type script struct {
	io.Reader
	io.Writer
}

func FuzzReadSOCKS5(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x04host\x00\x50"))
	f.Add([]byte("\x05\x02\x02\x00\x05\x03\x00\x01\x7f\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x35"))
	f.Add([]byte("\x05\xff"))
	f.Fuzz(func(t *testing.T, p []byte) {
		_, to, err := readSOCKS5(script{bytes.NewReader(p), io.Discard})
		if err != nil {
			return
		}
		if got, err := newTarget(to.host, to.port); err == nil && (got.Port == 0 || got.Host() == "" || got.Name != "" && got.Addr.IsValid()) {
			t.Errorf("target %+v of %+v", got, to)
		}
	})
}

func FuzzParseDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x35payload"))
	f.Add([]byte("\x00\x00\x00\x03\x09name.test\x01\xbbpayload"))
	f.Add([]byte("\x00\x00\x01\x03"))
	f.Fuzz(func(t *testing.T, p []byte) {
		payload, to, err := parseDatagram(p)
		if err != nil {
			return
		}
		// What is written again reads the same.
		again, sameTo, err := parseDatagram(append(appendSOCKSAddr([]byte{0, 0, 0}, to), payload...))
		if err != nil || !bytes.Equal(again, payload) || sameTo.String() != to.String() {
			t.Errorf("%q to %v became %q to %v, %v", payload, to, again, sameTo, err)
		}
	})
}

// TestAssociationWithoutUDP: where nothing carries UDP the app is told so at
// once, as the TUN tells it by ICMP, and can use TCP.
func TestAssociationWithoutUDP(t *testing.T) {
	d := &direct{}
	proxy := startWith(t, Options{Handler: d, CarriesUDP: func(context.Context) bool { return false }})
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	c.Write([]byte("\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"))
	if b, err := io.ReadAll(c); string(b) != "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00" || err != nil {
		t.Errorf("%x %v", b, err)
	}
}

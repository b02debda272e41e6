package upstream

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// exercise drives a real proxy with what every upstream must do.
func exercise(t *testing.T, u *Upstream, halfClose bool) {
	t.Helper()
	if err := u.Check(within(t, 5*time.Second)); err != nil {
		t.Fatalf("check: %v", err)
	}
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	c, err := u.DialStream(within(t, 5*time.Second), flow.TargetOf(serve(t, echo)), []byte("early "))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(8 * time.Second))
	go func() {
		_, _ = c.Write(data)
		if halfClose {
			_ = c.CloseWrite()
		}
	}()
	want := append([]byte("early "), data...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("echo: %v", err)
	}
	if halfClose {
		if n, err := c.Read(got); err != io.EOF {
			t.Errorf("after FIN: %d bytes, %v", n, err)
		}
	}
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	closed := flow.TargetOf(flow.AddrPortOf(ln.Addr()))
	ln.Close()
	_, err = u.DialStream(within(t, 10*time.Second), closed, nil)
	var e *Error
	if !errors.As(err, &e) || e.Kind != Target {
		t.Errorf("closed port: %v", err)
	}
}

func expectAuth(t *testing.T, u *Upstream) {
	t.Helper()
	var e *Error
	if err := u.Check(within(t, 5*time.Second)); !errors.As(err, &e) || e.Kind != Auth {
		t.Errorf("wrong password: %v", err)
	}
}

func TestRealTinyproxy(t *testing.T) {
	rawURL := tinyproxy(t, "BasicAuth user secret\n")
	with := func(user string) string { return strings.Replace(rawURL, "//", "//"+user+"@", 1) }
	exercise(t, open(t, with("user:secret"), nil, Options{}), false)
	expectAuth(t, open(t, with("user:wrong"), nil, Options{}))
}

func TestRealSquid(t *testing.T) { exercise(t, open(t, squid(t, ""), nil, Options{}), false) }

func TestRealDante(t *testing.T) {
	u := open(t, dante(t), nil, Options{})
	exercise(t, u, true)

	server := udpEcho(t)
	c, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.TargetOf(server))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 65535)
	for _, size := range []int{1, 1400, 8000} {
		if _, err := c.WriteTo(b[:size], flow.UDPAddrOf(server)); err != nil {
			t.Fatal(err)
		}
		if n, from, err := c.ReadFrom(b); n != size || err != nil || flow.AddrPortOf(from) != server {
			t.Fatalf("%d of %d bytes from %v: %v", n, size, from, err)
		}
	}
}

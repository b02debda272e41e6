package route

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An app that makes its receive buffer small once it is connected is sent more
// than what the persist timer lets through, 0.1 MB/s (see jam).
func TestSmallReceiveBuffer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: TCP_REPAIR needs CAP_NET_ADMIN")
	}
	const size, within = 2 << 20, 8 * time.Second // 20 s without
	for range 2 {
		for _, buffer := range []int{4 << 10, 8 << 10, 16 << 10} {
			h := handler(t, nil)
			app, appIn := pair(t)
			upIn, up := pair(t)
			if err := app.SetReadBuffer(buffer); err != nil {
				t.Fatal(err)
			}
			in := opaque{upIn} // as an HTTP/2 stream or TLS: what is spliced is left alone
			done := make(chan struct{})
			go func() { defer close(done); h.relay(t.Context(), &live{sum: &h.viaBytes}, appIn, in) }()
			go func() {
				_, _ = up.Write(make([]byte, size))
				_ = up.CloseWrite()
			}()
			begin := time.Now()
			_ = app.SetReadDeadline(begin.Add(within))
			n, err := io.Copy(io.Discard, struct{ io.Reader }{app})
			t.Logf("buffer of %d: %.1f MB/s", buffer, float64(n)/1e6/time.Since(begin).Seconds())
			if n != size || err != nil {
				t.Errorf("buffer of %d: %d of %d bytes within %v: %v", buffer, n, size, within, err)
			}
			if r, _ := net.Listen("tcp", appIn.LocalAddr().String()); r != nil { // the repair leaves SO_REUSEADDR alone
				_ = r.Close()
			} else {
				t.Error("the port cannot be listened on again")
			}
			_ = app.Close()
			wait(t, done)
		}
	}
}

// A repair makes a write fail that comes at that moment; nothing is lost by it.
func TestRepairLosesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: TCP_REPAIR needs CAP_NET_ADMIN")
	}
	h := handler(t, nil)
	app, appIn := pair(t)
	upIn, up := pair(t)
	l := &live{sum: &h.viaBytes}
	done := make(chan struct{})
	go func() { defer close(done); h.relay(t.Context(), l, appIn, opaque{upIn}) }()
	sent := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{5}).Read(sent)
	go func() {
		_, _ = up.Write(sent)
		_ = up.CloseWrite()
	}()
	until(t, "the socket is looked at", func() bool { return l.bytes.down.Load() > 2*jamBytes })
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		j := &l.relay.Load().down.jam
		for range 300 {
			j.repair.Lock()
			forgetWindow(appIn)
			j.repair.Unlock()
			time.Sleep(100 * time.Microsecond)
		}
	}()
	_ = app.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err := io.ReadAll(app)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes, %v", len(got), len(sent), err)
	}
	<-stop
	_ = app.Close()
	wait(t, done)
}

// TestReadWhileRepaired: a repair of the app's socket, for what comes down, does
// not end what goes up.
func TestReadWhileRepaired(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: TCP_REPAIR needs CAP_NET_ADMIN")
	}
	h := handler(t, nil)
	app, appIn := pair(t)
	upIn, up := pair(t)
	_ = up.SetDeadline(time.Now().Add(10 * time.Second))
	l := &live{sum: &h.viaBytes}
	done := make(chan struct{})
	go func() { defer close(done); h.relay(t.Context(), l, appIn, opaque{upIn}) }()
	for i := range 3 {
		if _, err := app.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(up, make([]byte, 1)); err != nil {
			t.Fatalf("after %d repairs: %v", i, err)
		}
		jam := &l.relay.Load().down.jam
		jam.wrote.Add(1)
		jam.repair.Lock()
		rc, err := appIn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		repair := func(on int) {
			_ = rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, on) })
			if err != nil {
				t.Error(err)
			}
		}
		repair(1)
		if _, err := app.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // the pump has come to reading
		repair(0)
		jam.repair.Unlock()
		if _, err := io.ReadFull(up, make([]byte, 1)); err != nil {
			t.Fatalf("repair %d: %v", i, err)
		}
	}
	_ = app.Close()
	_ = up.Close()
	wait(t, done)
}

// What is in a splice's pipe would be lost in a repair: there is none.
func TestNoRepairWhereSpliced(t *testing.T) {
	h := handler(t, nil)
	app, appIn := pair(t)
	upIn, up := pair(t)
	l := &live{sum: &h.viaBytes}
	done := make(chan struct{})
	go func() { defer close(done); h.relay(t.Context(), l, appIn, upIn) }()
	const size = 4 << 20
	go func() {
		_, _ = up.Write(make([]byte, size))
		_ = up.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, app); n != size || err != nil {
		t.Errorf("%d of %d bytes, %v", n, size, err)
	}
	if l.relay.Load().down.jam.wrote.Load() > 0 {
		t.Error("a socket that is spliced to was looked at")
	}
	_ = app.Close()
	wait(t, done)
}

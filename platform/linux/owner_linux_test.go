package linux

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// TestOwner: of connected, listening and datagram sockets, IPv4, IPv6 and both;
// of one that its process has closed, nobody.
func TestOwner(t *testing.T) {
	h, me := &Host{}, uint32(os.Getuid())
	for _, tt := range []struct{ listen, dial string }{{"127.0.0.1:0", "127.0.0.1"}, {"[::1]:0", "::1"}, {":0", "127.0.0.1"}, {":0", "::1"}} {
		l, err := net.Listen("tcp", tt.listen)
		if err != nil {
			t.Skipf("SKIPPED: no %s here: %v", tt.listen, err)
		}
		defer l.Close()
		to := netip.AddrPortFrom(netip.MustParseAddr(tt.dial), addrPort(l.Addr()).Port())
		if uid, ok := h.Owner("tcp", to, netip.AddrPortFrom(to.Addr(), 1)); !ok || uid != me {
			t.Errorf("%s: the listener is of %d, %v", to, uid, ok)
		}
		c, err := net.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		local := addrPort(c.LocalAddr())
		if uid, ok := h.Owner("tcp", local, to); !ok || uid != me {
			t.Errorf("%s: the connection is of %d, %v", to, uid, ok)
		}
		c.Close() // FIN-WAIT-2: the other end is open
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, ok := h.Owner("tcp", local, to); !ok {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: a closed connection is somebody's", to)
			}
		}
		u, err := net.ListenPacket("udp", tt.listen)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		at := netip.AddrPortFrom(to.Addr(), addrPort(u.LocalAddr()).Port())
		if uid, ok := h.Owner("udp", at, netip.AddrPortFrom(at.Addr(), 9)); !ok || uid != me {
			t.Errorf("%s: the datagram socket is of %d, %v", at, uid, ok)
		}
	}
	if uid, ok := h.Owner("tcp", netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")); ok {
		t.Errorf("a socket that is not there is of %d", uid)
	}
}

// TestOwnerOfAnotherUser: a socket belongs to whom its thread worked for.
func TestOwnerOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	const nobody = 65534
	listening := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		unix.SetfsuidRetUid(nobody)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Error(err)
		}
		listening <- l
	}()
	l := <-listening
	if l == nil {
		return
	}
	defer l.Close()
	at := addrPort(l.Addr())
	if uid, ok := (&Host{}).Owner("tcp", at, at); !ok || uid != nobody {
		t.Errorf("%s is of %d, %v", at, uid, ok)
	}
}

func BenchmarkOwner(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	h, at := &Host{}, addrPort(l.Addr())
	for b.Loop() {
		h.Owner("tcp", at, at)
	}
}

package listener

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform/linux"
)

// owners is what the kernel says of sockets, as in the service.
func owners(*testing.T) func(flow.Network, netip.AddrPort, netip.AddrPort) (uint32, bool) {
	var h linux.Host
	return func(n flow.Network, src, dst netip.AddrPort) (uint32, bool) { return h.Owner(n.String(), src, dst) }
}

// dialAs connects as another user.
func dialAs(t *testing.T, uid int, network, address string) net.Conn {
	t.Helper()
	return dialManyAs(t, uid, 1, network, address)[0]
}

func dialManyAs(t *testing.T, uid, n int, network, address string) []net.Conn {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can be another user")
	}
	conns := make([]net.Conn, n)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		unix.SetfsuidRetUid(uid)
		var err error
		for i := 0; i < n && err == nil; i++ {
			conns[i], err = net.Dial(network, address)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	return conns
}

// TestSilentConnectionsOfOneUser: however many one user has, another is answered
// at once, keeps those that he has, and only the first user's oldest are cut.
func TestSilentConnectionsOfOneUser(t *testing.T) {
	proxy := startWith(t, Options{Handler: &direct{}, User: owners(t)})
	port := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	const greedy, other, more = 65534, 65533, 100
	quiet := dialAs(t, other, "tcp", proxy) // is about to speak
	many := dialManyAs(t, greedy, maxSilent+more, "tcp", proxy)
	for i := range more {
		many[i].SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := many[i].Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d of %d that say nothing is open", i, len(many))
		}
	}
	for _, c := range []net.Conn{quiet, dialAs(t, other, "tcp", proxy), dialAs(t, 0, "tcp", proxy), many[len(many)-1]} {
		c.SetDeadline(time.Now().Add(5 * time.Second)) // half of what a handshake may take
		fmt.Fprintf(c, "GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\n\r\n", port)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("beside %d silent connections: %v, %v", len(many), resp, err)
		}
	}
}

package listener

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

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
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can be another user")
	}
	conns := make(chan net.Conn)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		unix.SetfsuidRetUid(uid)
		c, err := net.Dial(network, address)
		if err != nil {
			t.Error(err)
		}
		conns <- c
	}()
	c := <-conns
	if c == nil {
		t.FailNow()
	}
	t.Cleanup(func() { c.Close() })
	return c
}

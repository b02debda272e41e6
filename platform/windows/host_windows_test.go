package windows

import (
	"log/slog"
	"os"
	"os/exec"
	"testing"

	sys "golang.org/x/sys/windows"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/platformtest"
)

// TestConformance really changes the machine's network, which Windows cannot
// keep in a namespace: it runs where it is asked to.
func TestConformance(t *testing.T) {
	if !sys.GetCurrentProcessToken().IsElevated() || os.Getenv("ATLANTIC_TEST_NETWORK") == "" {
		t.Skip("SKIPPED: not an administrator, or ATLANTIC_TEST_NETWORK is not set: it changes this machine's network")
	}
	platformtest.Run(t, func() platform.Host {
		h, err := New(slog.New(slog.DiscardHandler), platform.Options{StateDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}, func() string {
		out, err := exec.Command("route", "print").CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	})
}

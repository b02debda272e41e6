package darwin

import (
	"log/slog"
	"os"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/platformtest"
)

// TestConformance really changes the machine's network, which macOS cannot keep
// in a namespace: it runs where it is asked to.
func TestConformance(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv("ATLANTIC_TEST_NETWORK") == "" {
		t.Skip("SKIPPED: not root, or ATLANTIC_TEST_NETWORK is not set: it changes this machine's network")
	}
	dir := t.TempDir()
	platformtest.Run(t, func() platform.Host {
		h, err := New(slog.New(slog.DiscardHandler), platform.Options{StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}, func() string {
		out := ""
		for _, args := range [][]string{{routePath, "-n", "get", "default"}, {scutilPath, "--dns"}, {ifconfigPath, "-a"}} {
			s, err := output(t.Context(), command{Args: args})
			if err != nil {
				t.Fatal(err)
			}
			out += s
		}
		return out
	})
}

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/netns"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// Labs of one process do not disturb each other, and leave nothing: no
// goroutine, namespace, descriptor or file.
func TestManyLabsLeaveNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: this test needs network namespaces; run it as root")
	}
	prefix := fmt.Sprintf("atl-%d-", os.Getpid())
	files := descriptors(t)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			if err := useLab(i); err != nil {
				t.Errorf("lab %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if left := netns.Names(prefix); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	for range 100 { // the poller lets go of closed sockets a moment later
		if descriptors(t) <= files+2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if now := descriptors(t); now > files+2 {
		entries, _ := os.ReadDir("/proc/self/fd")
		for _, e := range entries {
			to, _ := os.Readlink("/proc/self/fd/" + e.Name())
			t.Logf("descriptor %s: %s", e.Name(), to)
		}
		t.Errorf("%d descriptors open, %d before", now, files)
	}
	goleak.VerifyNone(t)
}

func useLab(i int) (err error) {
	l, err := lab.New(lab.Options{Impair: true, LAN: i == 0})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close(), l.Close()) }()
	c, err := l.Capture("")
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := l.StartProxy(lab.ProxyOptions{Scheme: proxy.HTTP, Port: 8080})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range 5 {
		if _, err := l.Fetch(ctx, lab.Client, "https://example.test/", lab.FetchOptions{Args: []string{"--proxy", p.URL()}}); err != nil {
			return err
		}
	}
	if n := p.Counters.Served.Load(); n != 5 {
		return fmt.Errorf("its proxy served %d requests, not 5", n)
	}
	left := l.Command(lab.Client, "sleep", "100") // Close kills it
	if err := left.Start(); err != nil {
		return err
	}
	go left.Wait() // ends when Close has killed the program
	return nil
}

// descriptors that are open, but for pipes: the runtime pools those of splice(2)
// until the garbage collector takes them.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); !strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// Whoever is not root is told so, and nothing is made.
func TestWithoutRoot(t *testing.T) {
	err := netns.OnThread(func() error {
		if os.Geteuid() == 0 { // this thread alone becomes nobody, and ends
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
				return errno
			}
		}
		_, err := lab.New(lab.Options{})
		return err
	})
	if !errors.Is(err, lab.ErrNotRoot) || !strings.Contains(err.Error(), "root") {
		t.Errorf("New says %v", err)
	}
}

package route

import (
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// urgentPair is a connection as apps and targets have it with us: our end keeps
// urgent bytes in the stream.
func urgentPair(t *testing.T) (theirs, ours *net.TCPConn) {
	t.Helper()
	theirs, ours = pair(t)
	rc, err := ours.SyscallConn()
	if err == nil {
		err = flow.UrgentInline("", "", rc)
	}
	if err != nil {
		t.Fatal(err)
	}
	return theirs, ours
}

// TestUrgent: an urgent byte arrives in its place, as an urgent one where the
// port is one of a protocol that has them.
func TestUrgent(t *testing.T) {
	for _, port := range []uint16{23, 7777} {
		for _, fromApp := range []bool{true, false} {
			h := handler(t, nil)
			app, appIn := urgentPair(t)
			server, upIn := urgentPair(t)
			l := &live{sum: &h.viaBytes}
			l.flow.Target.Port = port
			done := make(chan struct{})
			go func() { defer close(done); h.relay(t.Context(), l, appIn, upIn) }()
			from, to := app, server
			if !fromApp {
				from, to = server, app
			}
			_ = to.SetReadDeadline(time.Now().Add(10 * time.Second))
			var got atomic.Int32
			var text string
			var marks []int
			read := make(chan struct{})
			go func() { defer close(read); text, marks = readUrgent(t, to, &got) }()
			sent := 0
			for _, step := range []string{"say", "ab!", "more", "ab!", "ab!", "end"} {
				write := from.Write
				if step == "ab!" {
					write = func(b []byte) (int, error) { return writeUrgent(from, b) }
				}
				n, err := write([]byte(step))
				if err != nil {
					t.Fatal(err)
				}
				sent += n // the kernel remembers one urgent byte: what is sent must be read first
				until(t, "it is read", func() bool { return int(got.Load()) == sent })
			}
			_ = from.CloseWrite()
			<-read
			var want []int
			if port == 23 {
				want = []int{5, 12, 15}
			}
			if text != "sayab!moreab!ab!end" || !slices.Equal(marks, want) {
				t.Errorf("port %d, from the app %v: %q arrived, urgent at %v", port, fromApp, text, marks)
			}
			_ = app.Close()
			_ = server.Close()
			wait(t, done)
		}
	}
}

// readUrgent reads to the end and notes where urgent bytes were.
func readUrgent(t *testing.T, c *net.TCPConn, got *atomic.Int32) (text string, marks []int) {
	rc, err := c.SyscallConn()
	if err == nil {
		err = flow.UrgentInline("", "", rc)
	}
	if err != nil {
		t.Error(err)
		return
	}
	for {
		_ = rc.Read(func(fd uintptr) bool { // wait for a byte
			n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK)
			if err == nil && n > 0 && atMark(fd) {
				marks = append(marks, len(text))
			}
			return err != unix.EAGAIN
		})
		var b [1]byte
		if _, err := c.Read(b[:]); err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			return text, marks
		}
		text += string(b[:])
		got.Add(1)
	}
}

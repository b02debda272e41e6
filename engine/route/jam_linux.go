package route

import (
	"math"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel sends a segment only if all of it fits the window that the peer
// offers, and makes its segments up to half the largest window it has ever been
// offered (tcp_bound_to_half_wnd). Between sockets of one machine that is 32 KiB
// and more. An app that makes its receive buffer smaller once it is connected is
// then sent nothing before the persist timer, every 200 ms or more, cuts off what
// fits: 0.1 MB/s (November 2026). So while much is on its way to a socket it is
// looked at, and where it is stuck that way the kernel is made to forget the large
// window; it learns the present one from the answer to its probe.
//
// While that is done the socket takes no writes (EINVAL) and gives nothing to read
// (EPERM). Who met that tries again; splice(2) could not, what is in its pipe would
// be lost: so sockets that are spliced to are left alone. When they were not, a busy
// machine reset a download half-way, once in thousands: 70 repairs in 200 of 256 KiB
// (27 November 2026).

const (
	jamBytes  = chunkBytes       // written before a socket is looked at
	jamFirst  = time.Millisecond // from then to the first look
	jamLooks  = 8                // after so many without progress the pause between them doubles …
	jamDouble = 8                // … so many times
	jamTries  = 10               // of a read or write that meets repairs
	jamMoves  = 3 * jamLooks     // looks that a socket which moves is said to have had: every 8 ms
)

// jam looks at the dst of a pump. The zero value is ready.
type jam struct {
	fresh int // bytes written since it was armed; the writer's
	timer *time.Timer
	looks int    // without progress; of whoever has armed it, as is acked
	acked uint64 // bytes, at the last look
	armed atomic.Bool

	repair sync.Mutex    // held while c takes no writes, nor gives anything
	wrote  atomic.Uint32 // changes with every write
}

// bulk is told before n bytes are written.
func (p *pump) bulk(n int) {
	dst, ok := p.dst.(*net.TCPConn)
	if _, spliced := p.src.(*net.TCPConn); !ok || spliced {
		return
	}
	if p.jam.fresh += n; p.jam.fresh < jamBytes {
		return
	}
	p.jam.wrote.Add(1)
	if p.jam.armed.Swap(true) {
		return
	}
	p.jam.fresh = 0
	if p.jam.timer == nil {
		p.jam.timer = time.AfterFunc(math.MaxInt64, func() { p.jam.look(dst) })
	}
	p.jam.arm()
}

func (j *jam) arm() {
	j.looks = 0
	j.timer.Reset(jamFirst)
}

// look frees c if it is jammed, and looks again while something is unsent.
func (j *jam) look(c *net.TCPConn) {
	wrote := j.wrote.Load()
	info, err := tcpInfo(c)
	if err != nil || info.State == unix.BPF_TCP_CLOSE || info.Notsent_bytes == 0 {
		j.armed.Store(false)
		if err == nil && j.wrote.Load() != wrote && !j.armed.Swap(true) {
			j.arm()
		}
		return
	}
	moved, tight := info.Bytes_acked != j.acked, info.Unacked == 0 && info.Snd_wnd > 0 && info.Snd_wnd < info.Snd_mss
	j.acked = info.Bytes_acked
	switch {
	case tight && !moved:
		j.repair.Lock()
		forgetWindow(c)
		j.repair.Unlock()
		j.looks++
	case tight: // maybe for the moment
		j.looks = 0
	case moved:
		j.looks = jamMoves
	default:
		j.looks++
	}
	j.timer.Reset(jamFirst << min(j.looks/jamLooks, jamDouble))
}

// repairing is asked where a write failed with EINVAL, or a read with EPERM: it
// waits for a repair that may be under way, and reports whether there can have
// been one.
func (j *jam) repairing() bool {
	if j.wrote.Load() == 0 {
		return false
	}
	j.repair.Lock()
	defer j.repair.Unlock()
	return true
}

// stop is for the end of the relay.
func (j *jam) stop() {
	if j.timer != nil {
		j.timer.Stop()
	}
}

// repairWindow is struct tcp_repair_window.
type repairWindow struct{ sndWl1, sndWnd, maxWindow, rcvWnd, rcvWup uint32 }

// forgetWindow makes the kernel forget what window the peer of c has offered,
// and ask for it. It takes CAP_NET_ADMIN; without, nothing happens.
func forgetWindow(c syscall.Conn) {
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		reuse, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR) // the repair clears it
		if unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, 1) != nil {
			return
		}
		var w repairWindow
		size := uint32(unsafe.Sizeof(w))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_TCP, unix.TCP_REPAIR_WINDOW, uintptr(unsafe.Pointer(&w)), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 {
			w.sndWnd, w.maxWindow = 0, 0
			_, _, _ = unix.Syscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_TCP, unix.TCP_REPAIR_WINDOW, uintptr(unsafe.Pointer(&w)), unsafe.Sizeof(w), 0)
		}
		_ = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, 0) // sends the probe
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse)
	})
}

package wanem

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/lab/netns"
)

// End is where one side of the box appears: an Ethernet device of that name.
type End struct {
	NS     *netns.NS
	Device string
}

// Direction of travel through the box.
type Direction int

const (
	AtoB Direction = iota
	BtoA
)

// Box is a running impairment box. Close ends it.
type Box struct {
	dirs [2]*direction
	taps [2]int
	wake [2]int // eventfds that end a waiting direction
	wg   sync.WaitGroup
	once sync.Once
}

type direction struct {
	link                       atomic.Pointer[Link]
	frames, sent, lost, nospac atomic.Int64
	stop                       atomic.Bool
	in, out, wake              int
	late                       time.Duration // how late waits end; see woke
	s                          schedule
}

// Start makes both devices, without impairment. The same seed makes the same
// random decisions for the same frames.
func Start(a, b End, seed uint64) (*Box, error) {
	box := &Box{taps: [2]int{-1, -1}, wake: [2]int{-1, -1}}
	for i, end := range []End{a, b} {
		fd, err := openTAP(end)
		if err != nil {
			box.closeFiles()
			return nil, err
		}
		box.taps[i] = fd
		if box.wake[i], err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			box.closeFiles()
			return nil, fmt.Errorf("eventfd: %w", err)
		}
	}
	for i := range box.dirs {
		d := &direction{in: box.taps[i], out: box.taps[1-i], wake: box.wake[i]}
		d.s.rnd = rand.New(rand.NewPCG(seed, uint64(i)))
		d.link.Store(&Link{})
		box.dirs[i] = d
		box.wg.Go(d.run)
	}
	return box, nil
}

// Set changes what a direction does to frames that arrive from now on.
func (b *Box) Set(d Direction, l Link) { b.dirs[d].link.Store(&l) }

// SetBoth is Set in both directions.
func (b *Box) SetBoth(l Link) { b.Set(AtoB, l); b.Set(BtoA, l) }

// Stats of one direction.
func (b *Box) Stats(d Direction) Stats {
	x := b.dirs[d]
	return Stats{Frames: x.frames.Load(), Sent: x.sent.Load(), Lost: x.lost.Load(), Dropped: x.nospac.Load()}
}

// Close removes the devices and waits. It is idempotent.
func (b *Box) Close() error {
	b.once.Do(func() {
		for _, d := range b.dirs {
			d.stop.Store(true)
			unix.Write(d.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		}
		b.wg.Wait()
		b.closeFiles()
	})
	return nil
}

func (b *Box) closeFiles() {
	for _, fd := range append(b.taps[:], b.wake[:]...) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func openTAP(end End) (fd int, err error) {
	err = end.NS.Do(func() error {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(end.Device)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
	if err != nil {
		return -1, fmt.Errorf("open tap %s in %s: %w", end.Device, end.NS.Name(), err)
	}
	return fd, nil
}

// run moves frames one way. It owns a thread and sleeps in ppoll(2): the
// runtime's own timers are only good to a millisecond on Linux.
func (d *direction) run() {
	runtime.LockOSThread() // never unlocked: the thread's settings end with it
	// Wake within microseconds of the deadline, also beside busy programs.
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	if unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0) != nil {
		unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -19) // where real time is not granted
	}
	start := time.Now()
	fds := []unix.PollFd{{Fd: int32(d.in), Events: unix.POLLIN}, {Fd: int32(d.wake), Events: unix.POLLIN}}
	for !d.stop.Load() {
		wait, due := d.timeout(time.Since(start))
		n, err := unix.Ppoll(fds, wait, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if now := time.Since(start); n == 0 && err == nil {
			d.woke(now - due)
		}
		d.read(start)
		d.write(start)
	}
}

// timeout of the next wait, and when it will be over; nil waits for a frame.
func (d *direction) timeout(now time.Duration) (*unix.Timespec, time.Duration) {
	if len(d.s.q) == 0 {
		return nil, 0
	}
	due := max(now, d.s.q[0].at-d.late)
	ts := unix.NsecToTimespec(int64(due - now))
	return &ts, due
}

// maxLate bounds how much earlier than needed we ask to be woken, and so how
// long write may spin.
const maxLate = 250 * time.Microsecond

// woke learns how late the machine wakes us: in a virtual machine an idle
// processor takes 0.1 to 0.2 ms (November 2026). The next wait ends earlier by
// that much, and write spins for what is left.
func (d *direction) woke(late time.Duration) {
	d.late = min(maxLate, max(0, d.late+(late-d.late)/8))
}

// read takes what has arrived, at most a batch, so that write is not kept
// waiting.
func (d *direction) read(start time.Time) {
	const batch = 64
	link := *d.link.Load()
	for range batch {
		buf := make([]byte, 2048)
		n, err := unix.Read(d.in, buf)
		if err != nil {
			return
		}
		d.frames.Add(1)
		copies, lost := d.s.add(link, time.Since(start), buf[:n])
		switch {
		case lost:
			d.lost.Add(1)
		case copies == 0:
			d.nospac.Add(1)
		}
	}
}

// write sends what is due, or due before another wait could end.
func (d *direction) write(start time.Time) {
	for len(d.s.q) > 0 && d.s.q[0].at-d.late <= time.Since(start) {
		for d.s.q[0].at > time.Since(start) {
		}
		if _, err := unix.Write(d.out, d.s.pop()); err != nil {
			d.nospac.Add(1)
			continue
		}
		d.sent.Add(1)
	}
}

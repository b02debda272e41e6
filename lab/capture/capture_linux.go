package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/lab/netns"
)

// snapBytes of each frame reach us: enough for all headers.
const snapBytes = 256

// bufferBytes of frames may wait in the kernel.
const bufferBytes = 64 << 20

// maxKeys bounds the table; beyond it Leaks fails.
const maxKeys = 1 << 17

// Options of Start.
type Options struct {
	NS     *netns.NS
	Device string // the router's end towards the client
	PCAP   string // file to write as well; "" for none
}

// Capture is a running capture of what arrives at one device. Frames that the
// device sends are not seen.
type Capture struct {
	fd   int
	wg   sync.WaitGroup
	once sync.Once
	stop chan struct{} // closed by Close

	mu    sync.Mutex
	table map[Key]*Packet // guarded by mu
	full  int64           // frames without room in table; guarded by mu
	drops int64           // guarded by mu
	seen  int64           // guarded by mu
	err   error           // guarded by mu
	pcap  *bufio.Writer   // nil if not asked for; guarded by mu
	file  *os.File
}

// Start captures until Close. Every frame that reaches the device after Start
// has returned is counted.
func Start(opt Options) (*Capture, error) {
	c := &Capture{stop: make(chan struct{}), table: map[Key]*Packet{}, fd: -1}
	if opt.PCAP != "" {
		if err := c.openPCAP(opt.PCAP); err != nil {
			return nil, err
		}
	}
	if err := opt.NS.Do(func() error { return c.open(opt.Device) }); err != nil {
		c.closeFiles()
		return nil, fmt.Errorf("capture on %s: %w", opt.Device, err)
	}
	c.wg.Go(c.run)
	return c, nil
}

func (c *Capture) open(device string) error {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	// Protocol 0: nothing is received before bind, so that frames of other
	// devices never show up.
	if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	// Cut each frame to snapBytes in the kernel: "ret #snapBytes".
	cut := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: snapBytes}}
	if err := unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: 1, Filter: &cut[0]}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		return err
	}
	return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: dev.Index})
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (c *Capture) run() {
	buf := make([]byte, snapBytes)
	for {
		n, _, _, _, err := unix.Recvmsg(c.fd, buf, nil, unix.MSG_TRUNC)
		switch {
		case err == nil:
			c.add(buf[:min(n, len(buf))])
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			select {
			case <-c.stop:
				return
			default:
			}
		default:
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
	}
}

func (c *Capture) add(b []byte) {
	now := time.Now()
	k := Parse(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	p := c.table[k]
	if p == nil {
		if len(c.table) >= maxKeys {
			c.full++
			return
		}
		p = &Packet{Key: k, First: now}
		c.table[k] = p
	}
	p.Frames++
	p.Bytes += frameBytes(b)
	p.Last = now
	if c.pcap != nil {
		c.writePCAP(now, b)
	}
}

// Packets is everything seen so far, in the order of first sight.
func (c *Capture) Packets() []Packet {
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Packet, 0, len(c.table))
	for _, p := range c.table {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b Packet) int { return a.First.Compare(b.First) })
	return all
}

// Leaks is everything seen but link upkeep (Key.Upkeep) and what allow lists.
// It fails if the capture missed anything: then an empty list proves nothing.
func (c *Capture) Leaks(allow ...Tuple) ([]Packet, error) {
	var leaks []Packet
	for _, p := range c.Packets() {
		if !p.Upkeep() && !slices.ContainsFunc(allow, func(t Tuple) bool { return t.match(p.Key) }) {
			leaks = append(leaks, p)
		}
	}
	return leaks, c.Err()
}

// Err tells whether the capture is incomplete, and why.
func (c *Capture) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.countDrops()
	switch {
	case c.err != nil:
		return fmt.Errorf("capture ended early: %w", c.err)
	case c.drops > 0:
		return fmt.Errorf("the kernel dropped %d frames of the capture (%d seen)", c.drops, c.seen)
	case c.full > 0:
		return fmt.Errorf("%d frames found no room in the capture's table", c.full)
	}
	return nil
}

// Reset forgets what was seen.
func (c *Capture) Reset() {
	c.settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.table)
	c.seen, c.full = 0, 0
}

// settle waits until everything that has arrived is counted.
func (c *Capture) settle() {
	for range 1000 {
		n, err := unix.IoctlGetInt(c.fd, unix.TIOCINQ)
		if err != nil || n == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(time.Millisecond) // the frame that run holds in its hands
}

// countDrops adds what the kernel has dropped; its own counter starts anew with
// each reading. Called with mu held.
func (c *Capture) countDrops() {
	if c.fd < 0 {
		return
	}
	if st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		c.drops += int64(st.Drops)
	}
}

// Close ends the capture; Packets, Leaks and Err still tell what it saw.
func (c *Capture) Close() error {
	c.once.Do(func() {
		c.settle()
		close(c.stop)
		c.wg.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.countDrops()
		c.closeFiles()
	})
	return nil
}

func (c *Capture) closeFiles() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
	if c.file != nil {
		c.pcap.Flush()
		c.file.Close()
		c.pcap, c.file = nil, nil
	}
}

// openPCAP starts a file of microsecond format and Ethernet frames.
func (c *Capture) openPCAP(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	c.file, c.pcap = f, bufio.NewWriterSize(f, 1<<20)
	head := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	head = binary.LittleEndian.AppendUint16(head, 2)
	head = binary.LittleEndian.AppendUint16(head, 4)
	head = append(head, make([]byte, 8)...)
	head = binary.LittleEndian.AppendUint32(head, snapBytes)
	head = binary.LittleEndian.AppendUint32(head, 1)
	_, err = c.pcap.Write(head)
	return err
}

func (c *Capture) writePCAP(now time.Time, b []byte) {
	var h [16]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(now.Unix()))
	binary.LittleEndian.PutUint32(h[4:], uint32(now.Nanosecond()/1000))
	binary.LittleEndian.PutUint32(h[8:], uint32(len(b)))
	binary.LittleEndian.PutUint32(h[12:], uint32(max(int64(len(b)), frameBytes(b))))
	c.pcap.Write(h[:])
	c.pcap.Write(b)
}

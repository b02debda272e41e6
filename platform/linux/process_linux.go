package linux

import (
	"bufio"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxProcesses    = 1024            // sockets whose owner is remembered
	processLifetime = 5 * time.Second // a port may soon belong to another
	maxProcNetLines = 200_000
)

// Process implements platform.Processes. It finds the socket's inode in
// /proc/net and then the process that has it open; seeing the processes of
// other users takes CAP_SYS_PTRACE.
func (h *Host) Process(network string, src, _ netip.AddrPort) string {
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	return h.processes.find(network, src, time.Now())
}

// processCache remembers answers, empty ones too.
type processCache struct {
	mu    sync.Mutex
	known map[processKey]processEntry
	last  string // directory in /proc of the process found last
}

type processKey struct {
	network string
	src     netip.AddrPort
}

type processEntry struct {
	path string
	at   time.Time
}

func (c *processCache) find(network string, src netip.AddrPort, now time.Time) string {
	key := processKey{network, src}
	c.mu.Lock()
	e, ok := c.known[key]
	last := c.last
	c.mu.Unlock()
	if ok && now.Sub(e.at) < processLifetime {
		return e.path
	}
	path, dir := "", last
	if inode := socketInode("/proc/net", network, src); inode != "" {
		path, dir = socketOwner("/proc", inode, last)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxProcesses {
		c.known = make(map[processKey]processEntry)
	}
	c.known[key] = processEntry{path, now}
	c.last = dir
	return path
}

// socketInode finds the socket bound to src; for UDP also one bound to the port
// on all addresses. It is "" if there is none.
func socketInode(dir, network string, src netip.AddrPort) string {
	names := []string{network + "6"}
	if src.Addr().Is4() {
		names = []string{network, network + "6"} // v4 sockets of v6 programs
	}
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		inode := findInode(f, src, network == "udp")
		f.Close()
		if inode != "" {
			return inode
		}
	}
	return ""
}

// findInode reads the format of /proc/net/tcp: the second field is the local
// address and the tenth the inode.
func findInode(r io.Reader, src netip.AddrPort, wildcard bool) string {
	lines := bufio.NewScanner(io.LimitReader(r, 64<<20))
	fallback := ""
	for n := 0; lines.Scan() && n < maxProcNetLines; n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[9] == "0" {
			continue
		}
		local, err := parseProcAddr(fields[1])
		if err != nil || local.Port() != src.Port() {
			continue
		}
		if local == src {
			return fields[9]
		}
		if wildcard && local.Addr().IsUnspecified() {
			fallback = fields[9]
		}
	}
	return fallback
}

var errProcAddr = errors.New("not an address of /proc/net")

// parseProcAddr reads "0100007F:0035": 32-bit words in the byte order of the
// machine (all of ours are little-endian), then the port.
func parseProcAddr(s string) (netip.AddrPort, error) {
	addrText, portText, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(addrText)
	if !ok || err != nil || (len(raw) != 4 && len(raw) != 16) {
		return netip.AddrPort{}, errProcAddr
	}
	port, err := strconv.ParseUint(portText, 16, 16)
	if err != nil {
		return netip.AddrPort{}, errProcAddr
	}
	for i := 0; i < len(raw); i += 4 {
		raw[i], raw[i+1], raw[i+2], raw[i+3] = raw[i+3], raw[i+2], raw[i+1], raw[i]
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// socketOwner finds the process that has the socket open, first looking at the
// one that last's directory belongs to.
func socketOwner(proc, inode, last string) (exe, dir string) {
	want := "socket:[" + inode + "]"
	if last != "" && hasOpen(last, want) {
		return exeOf(last), last
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return "", ""
	}
	for _, e := range entries {
		if name := e.Name(); name[0] < '0' || name[0] > '9' {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		if hasOpen(dir, want) {
			return exeOf(dir), dir
		}
	}
	return "", ""
}

func hasOpen(dir, want string) bool {
	f, err := os.Open(filepath.Join(dir, "fd"))
	if err != nil {
		return false
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		if target, err := os.Readlink(filepath.Join(dir, "fd", name)); err == nil && target == want {
			return true
		}
	}
	return false
}

func exeOf(dir string) string {
	path, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, " (deleted)") // an upgraded program still counts
}

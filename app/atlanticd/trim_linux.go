package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// trim gives back what only the start has used: heap that is free, and the
// pages of this program's own file, most of which hold code that has run once.
// What is used again is mapped again from the page cache. It leaves 10 of 17 MB
// resident in an idle service (2026-11).
func trim() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer maps.Close()
	var from, to uintptr // the mapping of which lines speak, if it is of the file and only for reading
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) < 2:
		case strings.Contains(f[0], "-"): // 00400000-00a6b000 r-xp 00000000 fe:00 1234 /usr/bin/atlanticd
			from, to = 0, 0
			if len(f) == 6 && f[5] == exe && f[1][1] == '-' {
				_, _ = fmt.Sscanf(f[0], "%x-%x", &from, &to)
			}
		case f[0] == "Anonymous:" && f[1] == "0" && from < to: // nothing in it differs from the file
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}

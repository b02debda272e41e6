package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// needed are the capabilities that the service uses; assets/service has the
// same ones, and what each is for.
var needed = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE,
	unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_SYS_RESOURCE}

// harden gives up what the service does not need, so that one started by hand
// is no more than what the unit makes of it: no core dump and no debugger shows
// its passwords, nothing it starts gains rights, and of root only the needed
// capabilities are left. It must run before anything that could be attacked.
func harden() error {
	err := errors.Join(
		os.NewSyscallError("setrlimit core", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})),
		os.NewSyscallError("prctl dumpable", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)),
		everyThread("no new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0))
	if os.Geteuid() != 0 {
		return err
	}
	return errors.Join(err, dropCapabilities())
}

// dropCapabilities leaves those that are needed, of those that there are.
func dropCapabilities() error {
	var keep [2]uint32
	for _, c := range needed {
		keep[c/32] |= 1 << (c % 32)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	// The bounding set first: it takes a capability that goes afterwards.
	if sets[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if keep[c/32]&(1<<(c%32)) != 0 {
				continue
			}
			err := everyThread("bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
			if err != nil && !errors.Is(err, unix.EINVAL) { // a capability that this kernel does not know
				return err
			}
		}
	}
	for i := range sets {
		sets[i].Effective &= keep[i]
		sets[i].Permitted &= keep[i]
		sets[i].Inheritable = 0
	}
	return everyThread("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&sets[0])), 0)
}

// everyThread makes a system call whose effect is a thread's on all threads.
func everyThread(what string, trap, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall(trap, a, b, c); errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/assets/service"
)

// A service in the foreground gives up what the unit takes from one that
// systemd starts (RELIABILITY.md IA-12), on every thread.
func TestForegroundHasFewRights(t *testing.T) {
	program := filepath.Join(t.TempDir(), "atlanticd")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	uids := []int{os.Geteuid()}
	if os.Geteuid() == 0 {
		uids = append(uids, 65534)
	}
	for _, uid := range uids {
		t.Run(fmt.Sprint("user ", uid), func(t *testing.T) { hasFewRights(t, program, uid) })
	}
}

func hasFewRights(t *testing.T, program string, uid int) {
	dir, err := os.MkdirTemp("", "few-rights")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chown(dir, uid, uid), os.Link(program, dir+"/atlanticd")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dir+"/atlanticd", "run", "--no-tun", "--config", dir+"/none.toml", "--state", dir+"/state", "--socket", dir+"/run/s")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)},
			Cloneflags: syscall.CLONE_NEWNET}
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Signal(unix.SIGTERM); cmd.Wait() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(dir + "/run/s"); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal("the service does not start")
		}
	}
	var most uint64 // capabilities
	if uid == 0 {
		for _, c := range needed {
			most |= 1 << c
		}
		ours, err := strconv.ParseUint(fields(t, "/proc/self/status")["CapBnd"], 16, 64) // a container's root has not all
		if err != nil {
			t.Fatal(err)
		}
		most &= ours
	}
	proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	tasks, err := os.ReadDir(proc + "task")
	if err != nil || len(tasks) < 2 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		status := fields(t, proc+"task/"+task.Name()+"/status")
		if status["NoNewPrivs"] != "1" {
			t.Errorf("thread %s may gain privileges: %s", task.Name(), status["NoNewPrivs"])
		}
		for set, most := range map[string]uint64{"CapEff": most, "CapPrm": most, "CapBnd": most, "CapInh": 0} {
			if has, err := strconv.ParseUint(status[set], 16, 64); err != nil || has != most && (set != "CapBnd" || uid == 0) {
				t.Errorf("thread %s: %s is %x, want %x (%v)", task.Name(), set, has, most, err)
			}
		}
	}
	if limits, err := os.ReadFile(proc + "limits"); err != nil || !strings.Contains(squeeze(string(limits)), "Max core file size 0 0 bytes") {
		t.Errorf("core dumps: %v\n%s", err, limits)
	}
	// What may not be dumped belongs to root in /proc (proc(5)).
	if fi, err := os.Stat(proc + "environ"); err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the process can be dumped: %v", err)
	}
}

// The list in the code is the unit's.
func TestNeededIsTheUnits(t *testing.T) {
	names := map[uintptr]string{unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_NET_RAW: "CAP_NET_RAW", unix.CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE",
		unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE", unix.CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH", unix.CAP_CHOWN: "CAP_CHOWN", unix.CAP_FOWNER: "CAP_FOWNER", unix.CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE"}
	var list []string
	for _, c := range needed {
		list = append(list, names[c])
	}
	unit, err := service.Unit("/usr/bin/atlanticd")
	if want := "\nCapabilityBoundingSet=" + strings.Join(list, " ") + "\n"; err != nil || !strings.Contains(unit, want) {
		t.Errorf("%v, no %q in\n%s", err, want, unit)
	}
}

func fields(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		out[name] = strings.TrimSpace(value)
	}
	return out
}

func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

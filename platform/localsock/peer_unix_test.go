//go:build linux || darwin

package localsock

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestMain lets the tests start this binary as another user.
func TestMain(m *testing.M) {
	switch role, path := os.Getenv("LOCALSOCK_ROLE"), os.Getenv("LOCALSOCK_PATH"); role {
	case "":
		os.Exit(m.Run())
	case "serve": // until stdin ends
		if _, err := net.Listen("unix", path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin)
	case "dial":
		conn, err := net.Dial("unix", path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("ready")
		io.Copy(io.Discard, conn)
	}
}

// startAs runs this binary in role as the user and waits until it is ready.
func startAs(t *testing.T, role, path string, cred syscall.Credential) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root: cannot start a process of another user")
	}
	// The test binary lies in a private directory: run it by descriptor.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Skipf("SKIPPED: no /proc/self/exe: %v", err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Dir = "/"
	cmd.Env = []string{"LOCALSOCK_ROLE=" + role, "LOCALSOCK_PATH=" + path}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &cred}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%s as uid %d: %q, %v", role, cred.Uid, line, err)
	}
}

func TestPeerIsSelf(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	ln := listen(t, path)
	client, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p, err := PeerOf(conn)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Peer{UID: os.Getuid(), Known: true, Admin: true, Name: userName(os.Getuid())}); p != want {
		t.Errorf("peer %+v, want %+v", p, want)
	}
}

func TestPeerOfSomethingElse(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if p, err := PeerOf(a); err == nil || p.Known || p.Admin {
		t.Errorf("peer of a pipe: %+v, %v", p, err)
	}
}

func TestPeerOfAnotherUser(t *testing.T) {
	tests := []struct {
		name   string
		cred   syscall.Credential
		groups map[string]bool // group -> is the peer in it
	}{
		{"no groups", syscall.Credential{Uid: 65534, Gid: 54321}, map[string]bool{"bin": false, "daemon": false, "no-such-group": false}},
		{"primary", syscall.Credential{Uid: 54321, Gid: 1}, map[string]bool{"daemon": true, "bin": false}},
		{"supplementary", syscall.Credential{Uid: 54321, Gid: 54321, Groups: []uint32{2, 54322}}, map[string]bool{"bin": true, "daemon": false}},
		{"by the database", syscall.Credential{Uid: 1, Gid: 54321}, map[string]bool{"daemon": true, "bin": false}},
		{"very many", syscall.Credential{Uid: 54321, Gid: 54321, Groups: append(many(54400, 200), 2)}, map[string]bool{"bin": true, "daemon": false}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "s")
			ln := listen(t, path)
			startAs(t, "dial", path, tc.cred)
			conn, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			p, err := PeerOf(conn)
			if err != nil {
				t.Fatal(err)
			}
			if !p.Known || p.UID != int(tc.cred.Uid) || p.Name == "" {
				t.Errorf("peer %+v, want uid %d", p, tc.cred.Uid)
			}
			if p.Admin {
				t.Errorf("uid %d may write", p.UID)
			}
			for group, want := range tc.groups {
				if got := inGroup(conn.(*net.UnixConn), p.UID, group); got != want {
					t.Errorf("in group %s: %v, want %v", group, got, want)
				}
			}
		})
	}
}

func many(from uint32, n int) (ids []uint32) {
	for i := range n {
		ids = append(ids, from+uint32(i))
	}
	return ids
}

// IA-04: a squatter's server gets nothing.
func TestForeignServer(t *testing.T) {
	dir := shortDir(t)
	if err := os.Chmod(dir, os.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	startAs(t, "serve", path, syscall.Credential{Uid: 65534, Gid: 65534})
	_, err := Dial(context.Background(), path)
	var foreign *ForeignServerError
	if !errors.Is(err, ErrForeignServer) || !errors.As(err, &foreign) || foreign.UID != 65534 {
		t.Errorf("dial: %v, want a ForeignServerError of uid 65534", err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("Listen replaced another user's socket")
	}
}

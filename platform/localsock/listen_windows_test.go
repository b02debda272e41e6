package localsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
)

func TestPipe(t *testing.T) {
	path := fmt.Sprintf(`\\.\pipe\atlantic-test-%d`, os.Getpid())
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if conn, err := ln.Accept(); err == nil {
			accepted <- conn
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	client, err := Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, ok := <-accepted
	if !ok {
		t.Fatal("nothing accepted")
	}
	defer server.Close()
	p, err := PeerOf(server)
	if err != nil {
		t.Fatal(err)
	}
	own, err := ownUser()
	if err != nil {
		t.Fatal(err)
	}
	if want := (Peer{UID: -1, Known: true, Admin: true, Name: accountName(own)}); p != want {
		t.Errorf("peer %+v, want %+v", p, want)
	}
	if _, err := Listen(path); !errors.Is(err, ErrRunning) {
		t.Errorf("second Listen: %v, want ErrRunning", err)
	}
	remote := strings.Replace(path, `\\.\`, `\\127.0.0.1\`, 1)
	if f, err := os.OpenFile(remote, os.O_RDWR, 0); err == nil {
		f.Close()
		t.Error("reached over the network")
	}
}

func TestDescriptorParses(t *testing.T) {
	if _, err := windows.SecurityDescriptorFromString(pipeSDDL("S-1-5-18")); err != nil {
		t.Error(err)
	}
}

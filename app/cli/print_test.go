package cli

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
)

// full is a device without room (/dev/full).
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// What could not be written is not success, text and JSON alike.
func TestOutputIsLost(t *testing.T) {
	t.Setenv("ATLANTIC_SOCKET", t.TempDir()+"/none")
	for _, line := range []string{"version", "version --json", "help", "up --help", "completion bash", "config check --file /nonexistent/none.toml"} {
		var stderr bytes.Buffer
		code := Main(strings.Fields(line), Options{Stdin: strings.NewReader(""), Stdout: full{}, Stderr: &stderr})
		if code != exitError || !strings.Contains(stderr.String(), "error: ") {
			t.Errorf("atlantic %s: exit code %d, %q", line, code, stderr.String())
		}
	}
}

// Errors that were joined have a line each, and none of them twice.
func TestJoinedErrors(t *testing.T) {
	var out, errs bytes.Buffer
	a := &app{}
	a.out, a.err = newPrinter(&out, a.named), newPrinter(&errs, a.named)
	a.root()
	one := errors.New("remove the route: no such process")
	err := errors.Join(one, errors.Join(one, errors.New("write /etc/resolv.conf: read-only file system")), one)
	if code := a.report(err, false); code != exitError {
		t.Error(code)
	}
	if want := "error: remove the route: no such process\nwrite /etc/resolv.conf: read-only file system\n"; errs.String() != want {
		t.Errorf("%q, want %q", errs.String(), want)
	}
	a.out.line("because: %s", err.Error())
	if want := "because: remove the route: no such process; write /etc/resolv.conf: read-only file system\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// Hints can be typed as they stand.
func TestHintsNameTheProgram(t *testing.T) {
	socket := t.TempDir() + "/none"
	var stderr bytes.Buffer
	Main([]string{"--socket", socket, "status"}, Options{Program: "bin/atlantic", Stdout: io.Discard, Stderr: &stderr})
	if want := "start it: sudo bin/atlantic service start   (or, just once: sudo bin/atlanticd run)"; !strings.Contains(stderr.String(), want) {
		t.Errorf("%q, want %q", stderr.String(), want)
	}
	stderr.Reset()
	Main([]string{"--socket", socket, "up", "--bogus"}, Options{Program: "bin/atlantic", Stdout: io.Discard, Stderr: &stderr})
	if !strings.Contains(stderr.String(), "see: bin/atlantic --help") {
		t.Error(stderr.String())
	}
}

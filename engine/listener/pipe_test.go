package listener

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestPipe(t *testing.T) {
	a, b := newPipe()
	go func() {
		io.WriteString(a, "hello")
		a.CloseWrite()
	}()
	if got, err := io.ReadAll(b); err != nil || string(got) != "hello" {
		t.Errorf("%q %v", got, err)
	}
	go func() { io.WriteString(b, "back"); b.Close() }()
	if got, err := io.ReadAll(a); err != nil || string(got) != "back" {
		t.Errorf("%q %v: half-closed means closed", got, err)
	}
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("written to a closed connection")
	}
	a, b = newPipe()
	b.SetLinger(0)
	b.Close()
	if _, err := a.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Error("a reset looks like the end:", err)
	}
	a, b = newPipe()
	defer b.Close()
	past := time.Now().Add(-time.Second)
	a.SetDeadline(past)
	if _, err := a.Read(make([]byte, 1)); !isTimeout(err) {
		t.Error(err)
	}
	if _, err := a.Write([]byte("x")); !isTimeout(err) {
		t.Error(err)
	}
	a.CloseRead()
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("nobody reads, yet it is written")
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// TestPipeWriteTo: bytes keep their order whether they are written before
// WriteTo runs or after, and by whom.
func TestPipeWriteTo(t *testing.T) {
	a, b := newPipe()
	var want, got bytes.Buffer
	for i := range 1000 {
		fmt.Fprintf(&want, "%d,", i)
	}
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := range 1000 {
			if _, err := fmt.Fprintf(a, "%d,", i); err != nil {
				t.Error(err)
			}
		}
		a.Close()
	})
	first := make([]byte, 7)
	if _, err := io.ReadFull(b, first); err != nil {
		t.Fatal(err)
	}
	got.Write(first)
	if n, err := b.WriteTo(&got); err != nil || int(n) != want.Len()-len(first) {
		t.Error(n, err)
	}
	writer.Wait()
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Error("not what was written")
	}
}

// TestPipeWriteToEnds: by a reset, by the reader's close, by its deadline, and
// by an error of what it leads to, which the writer gets.
func TestPipeWriteToEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		for name, tt := range map[string]struct {
			act  func(a, b *pipe)
			want func(error) bool
		}{
			"reset":    {func(a, _ *pipe) { a.SetLinger(0); a.Close() }, func(err error) bool { return err == errReset }},
			"close":    {func(_, b *pipe) { b.Close() }, func(err error) bool { return err == io.ErrClosedPipe }},
			"deadline": {func(_, b *pipe) { b.SetReadDeadline(time.Now().Add(time.Hour)) }, isTimeout},
			"error": {func(a, _ *pipe) {
				if _, err := io.WriteString(a, "x"); err != broken {
					t.Error("the writer got", err)
				}
			}, func(err error) bool { return err != nil }},
		} {
			a, b := newPipe()
			ended := make(chan error)
			go func() {
				_, err := b.WriteTo(writerFunc(func([]byte) (int, error) { return 0, broken }))
				ended <- err
			}()
			synctest.Wait()
			tt.act(a, b)
			if err := <-ended; !tt.want(err) {
				t.Errorf("%s: %v", name, err)
			}
			a.Close()
			b.Close()
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

package route

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// lane is a StreamConn in memory that knows deadlines.
type lane struct {
	net.Conn          // what comes in
	out      net.Conn // what goes out
}

func (l *lane) Write(p []byte) (int, error)        { return l.out.Write(p) }
func (l *lane) CloseRead() error                   { return l.Conn.Close() }
func (l *lane) CloseWrite() error                  { return l.out.Close() }
func (l *lane) SetWriteDeadline(t time.Time) error { return l.out.SetWriteDeadline(t) }
func (l *lane) Close() error {
	_ = l.out.Close()
	return l.Conn.Close()
}

func lanes() (a, b *lane) {
	aIn, bOut := net.Pipe()
	bIn, aOut := net.Pipe()
	return &lane{aIn, aOut}, &lane{bIn, bOut}
}

// A connection may be silent for as long as its ends like, open both ways or
// one way (RFC 5382 REQ-5 asks for two hours and four minutes at least).
func TestSilence(t *testing.T) {
	for _, silence := range []time.Duration{time.Second, 70 * time.Second, 310 * time.Second, 20 * time.Minute, 24 * time.Hour} {
		for _, half := range []string{"", "app", "server"} {
			synctest.Test(t, func(t *testing.T) {
				h := handler(t, nil)
				app, in := lanes()
				server, out := lanes()
				done := make(chan struct{})
				go func() { defer close(done); h.relay(t.Context(), &live{sum: &h.viaBytes}, in, out) }()
				switch half {
				case "app":
					_ = app.CloseWrite()
				case "server":
					_ = server.CloseWrite()
				}
				say := func(from, to *lane) {
					go func() { _, _ = from.Write([]byte("hello")) }()
					if _, err := io.ReadFull(to, make([]byte, 5)); err != nil {
						t.Errorf("after %v of silence, ended by %q: %v", silence, half, err)
					}
				}
				for range 2 {
					time.Sleep(silence)
					if half != "app" {
						say(app, server)
					}
					if half != "server" {
						say(server, app)
					}
				}
				_ = app.Close()
				_ = server.Close()
				<-done
			})
		}
	}
}

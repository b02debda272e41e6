package route

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	// firstBytesMax is how many of them ride along: a TLS ClientHello with
	// post-quantum keys has 2 KiB, an HTTP head rarely more than 8.
	firstBytesMax = 16 << 10
	// maxTalkers is how many targets are remembered whose server speaks first.
	maxTalkers = 1024
	// talkerLife is how long one is believed without being seen again: an app
	// that was only slow to speak is no proof.
	talkerLife = 10 * time.Minute
)

// firstBytes reads what the app says first, nil if it keeps silent for
// flow.FirstWait. The slice is the caller's. An error means that the app has gone.
func (h *Handler) firstBytes(app flow.StreamConn) ([]byte, error) {
	b := h.chunks.Get().(*[chunkBytes]byte)
	defer h.chunks.Put(b)
	_ = app.SetReadDeadline(time.Now().Add(flow.FirstWait))
	n, err := app.Read(b[:firstBytesMax])
	_ = app.SetReadDeadline(time.Time{})
	var timeout net.Error // gVisor has its own
	switch {
	case n > 0:
		return slices.Clone(b[:n]), nil
	case err == nil, errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, io.EOF): // the relay sees the end again
		return nil, nil
	}
	return nil, err
}

// speaksFirst are ports of FTP, SSH, SMTP, POP3, NNTP, IMAP, submission, MySQL
// and VNC.
var speaksFirst = [...]uint16{21, 22, 25, 110, 119, 143, 587, 3306, 5900}

// ServerSpeaksFirst are the ports whose servers speak first: their apps have no
// early data, and are better told by a refusal that nobody answers.
func ServerSpeaksFirst() []uint16 { return slices.Clone(speaksFirst[:]) }

// talkers remembers targets whose server speaks first: an app has nothing to
// say to them before, so it is not accepted before they have answered. Some are
// known by their port, the others are learnt. The zero value is ready.
type talkers struct {
	mu      sync.RWMutex
	targets map[flow.Target]time.Time // guarded by mu; when it was learnt
}

func (s *talkers) has(t flow.Target) bool {
	if slices.Contains(speaksFirst[:], t.Port) {
		return true
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok := s.targets[t]
	return ok && time.Since(at) < talkerLife
}

// add learns one; when there are too many all are forgotten, since learning is
// quick.
func (s *talkers) add(t flow.Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.targets == nil || len(s.targets) >= maxTalkers {
		s.targets = make(map[flow.Target]time.Time)
	}
	s.targets[t] = time.Now()
}

package h2

import (
	"net"
	"os"
	"syscall"
	"time"
)

// Write implements net.Conn. It waits for the peer's windows.
func (st *Stream) Write(p []byte) (int, error) {
	st.wr.Lock()
	defer st.wr.Unlock()
	done := 0
	for done < len(p) {
		n, err := st.claim(len(p) - done)
		if err != nil {
			return done, err
		}
		if err := st.s.writeData(st.id, p[done:done+n], false); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// claim waits until up to want bytes may be sent and takes them from the
// windows.
func (st *Stream) claim(want int) (int, error) {
	s := st.s
	for {
		if st.writeLimit.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		s.mu.Lock()
		err := st.writeErrLocked()
		n := int(min(int64(want), st.sendWindow, s.sendWindow, writeBytes))
		if err == nil && n > 0 {
			st.sendWindow -= int64(n)
			s.sendWindow -= int64(n)
		} else if err == nil && st.sendWindow > 0 {
			if !st.starved {
				st.starved = true
				s.starved = append(s.starved, st)
			}
			s.blocked.Store(int64(time.Since(s.born)))
		}
		s.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-st.writable:
		case <-st.writeLimit.wait():
		}
	}
}

func (st *Stream) writeErrLocked() error {
	switch {
	case st.closed:
		return net.ErrClosed
	case st.err != nil:
		return st.err
	case st.sentEnd:
		return &net.OpError{Op: "write", Net: "h2", Err: syscall.EPIPE}
	}
	return nil
}

// CloseWrite sends END_STREAM; reading goes on.
func (st *Stream) CloseWrite() error {
	st.wr.Lock()
	defer st.wr.Unlock()
	s := st.s
	s.mu.Lock()
	err := st.writeErrLocked()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := s.writeData(st.id, nil, true); err != nil {
		return err
	}
	s.mu.Lock()
	st.sentEnd = true
	st.dropIfDoneLocked()
	s.mu.Unlock()
	return nil
}

package engine

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// keepAgain is how long after a failed write the next one is tried.
const keepAgain = 5 * time.Second

// keeper writes down what is to outlive a restart. It is the only writer, and
// works beside Run: a disk that hangs does not make Run wait. Only the newest
// matters, so whatever is handed over during one write goes with the next.
type keeper struct {
	dir     string
	log     *slog.Logger
	wake    chan struct{} // has a value while something new is to be written
	written func()        // called after each try

	mu     sync.Mutex
	intent *intent // guarded by mu: to be written, nil if nothing is
	good   *[]byte // guarded by mu: likewise; what it points to is nil if the file is to go
	asked  uint64  // guarded by mu: how often something was handed over
	tried  uint64  // guarded by mu: how much of that has been written, or has failed
	failed error   // guarded by mu: of the last try, nil if all is kept
}

func newKeeper(dir string, log *slog.Logger, written func()) *keeper {
	return &keeper{dir: dir, log: log, wake: make(chan struct{}, 1), written: written}
}

func (k *keeper) keep(in intent) {
	in.Version = intentVersion
	k.hand(func() { k.intent = &in })
}

// keepGood hands over the text of a configuration that has worked.
func (k *keeper) keepGood(text []byte) { k.hand(func() { k.good = &text }) }

func (k *keeper) hand(over func()) {
	k.mu.Lock()
	over()
	k.asked++
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// progress is how often something was handed over, and how much of that has been
// written by now, or could not be.
func (k *keeper) progress() (asked, tried uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked, k.tried
}

// lacks says why what is wanted is not kept; nil if it is.
func (k *keeper) lacks() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}

// run writes until ctx ends, and then what is left. What cannot be written is
// tried again.
func (k *keeper) run(ctx context.Context) {
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		select {
		case <-k.wake:
		case <-again.C:
		case <-ctx.Done():
			_ = k.write() // logged
			return
		}
		if k.write() != nil {
			again.Reset(keepAgain)
		}
	}
}

// write tries to write what is to be written.
func (k *keeper) write() error {
	k.mu.Lock()
	in, good, upTo := k.intent, k.good, k.asked
	k.intent, k.good = nil, nil
	k.mu.Unlock()

	var errIntent, errGood error
	if in != nil {
		errIntent = saveIntent(k.dir, *in)
	}
	if good != nil {
		errGood = saveGood(k.dir, *good)
	}
	err := errors.Join(errIntent, errGood)

	k.mu.Lock()
	if errIntent != nil && k.intent == nil { // nothing newer has come
		k.intent = in
	}
	if errGood != nil && k.good == nil {
		k.good = good
	}
	news := (err == nil) != (k.failed == nil)
	k.tried, k.failed = upTo, err
	k.mu.Unlock()

	if news && err != nil {
		k.log.Error("what is wanted cannot be kept for the next start", "err", err)
	} else if news {
		k.log.Info("what is wanted is kept again")
	}
	k.written()
	return err
}

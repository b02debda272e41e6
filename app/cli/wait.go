package cli

import (
	"context"
	"errors"
	"time"

	"github.com/atlanticproxy/atlanticproxy/app/client"
)

const (
	signAfter  = time.Second     // of silence, something is said where there is no spinner
	doubtAfter = 2 * time.Second // of silence, the service is asked whether it is alive
	doubtEnds  = 3 * time.Second // later, at the latest, that is known
)

// frozen is a service that has not ended, and answers nothing.
var frozen = failure{exitError, "the service is there, but does not answer", "restart it: sudo atlantic service stop; sudo atlantic service start"}

// waiting makes a call that may take as long as a look at an upstream does. It
// shows within a second that something is going on, and gives a service up
// that answers nothing at all, five seconds after the call.
func waiting[T any](ctx context.Context, a *app, doing string, call func(context.Context, *client.Client) (T, error)) (T, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		value T
		err   error
	}
	answers, dead := make(chan answer, 1), make(chan struct{}, 1)
	go func() { // ends with ctx
		v, err := call(ctx, a.client())
		answers <- answer{v, err}
	}()
	doubt := time.AfterFunc(doubtAfter, func() {
		ctx, cancel := context.WithTimeout(ctx, doubtEnds)
		defer cancel()
		if _, err := a.client().Status(ctx); errors.Is(err, context.DeadlineExceeded) {
			dead <- struct{}{}
		}
	})
	defer doubt.Stop()
	spin := newSpinner(a.err)
	defer spin.clear()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	said := false
	for {
		select {
		case got := <-answers:
			return got.value, got.err
		case <-dead:
			cancel()
			got := <-answers
			if got.err != nil {
				got.err = &frozen
			}
			return got.value, got.err
		case <-tick.C:
			spin.turn(doing)
			if !said && !a.err.tty && time.Since(spin.began) >= signAfter {
				a.err.line("%s …", doing)
				said = true
			}
		}
	}
}

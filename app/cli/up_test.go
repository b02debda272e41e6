package cli

import (
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// TestUntilOnTellsOffFromTheEnd: Off without a cause may be the service's end,
// which the stream's end tells; if that does not come, it is Off.
func TestUntilOnTellsOffFromTheEnd(t *testing.T) {
	clock := time.Now()
	v := untilOn(func() time.Time { return clock })
	for _, step := range []struct {
		after time.Duration
		st    api.Status
		done  bool
	}{
		{0, api.Status{State: api.Starting}, false},
		{0, api.Status{State: api.Stopping}, false},
		{0, api.Status{State: api.Off}, false},
		{offGrace / 2, api.Status{State: api.Off}, false},
		{0, api.Status{State: api.Starting}, false}, // somebody's `up`
		{offGrace, api.Status{State: api.Off}, false},
		{offGrace, api.Status{State: api.Off}, true},
	} {
		clock = clock.Add(step.after)
		if done, err := v(step.st); done != step.done || done != (err != nil) {
			t.Errorf("%s: %v, %v", step.st.State, done, err)
		}
	}
	failed := api.Status{State: api.Off, Cause: "the upstream refused the connection"}
	if done, err := untilOn(time.Now)(failed); !done || err == nil {
		t.Errorf("a start that failed: %v, %v", done, err)
	}
}

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

const (
	verdictFile = "early.json"
	// maxVerdicts bounds the file; a list may have many proxies.
	maxVerdicts = 4096
	// verdictLife is how long one is believed without having been confirmed.
	verdictLife = 30 * 24 * time.Hour
)

// verdicts remember, from one run to the next, which proxies carry early data,
// so that not every start has to find out anew. A verdict that is wrong by then
// is found out by the flows that fail.
type verdicts struct {
	path    string
	changed chan struct{} // has a value while the file is behind

	mu   sync.Mutex
	seen map[string]verdict // guarded by mu; by scheme and address
}

type verdict struct {
	Carries bool      `json:"carries"`
	At      time.Time `json:"at"`
}

// loadVerdicts reads what was kept; what cannot be read counts as nothing,
// since it costs one flow to find out again.
func loadVerdicts(dir string) *verdicts {
	v := &verdicts{path: filepath.Join(dir, verdictFile), changed: make(chan struct{}, 1), seen: map[string]verdict{}}
	data, err := os.ReadFile(v.path)
	if err != nil || json.Unmarshal(data, &v.seen) != nil || len(v.seen) > maxVerdicts {
		v.seen = map[string]verdict{}
	}
	return v
}

func verdictKey(s upstream.Spec) string { return s.Scheme + "://" + s.Addr() }

// known is the verdict on s's proxy.
func (v *verdicts) known(s upstream.Spec) upstream.Verdict {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch was, ok := v.seen[verdictKey(s)]; {
	case !ok || time.Since(was.At) > verdictLife:
		return upstream.EarlyUnknown
	case was.Carries:
		return upstream.EarlyCarries
	}
	return upstream.EarlyRefuses
}

// keep notes u's verdict and soon writes the file.
func (v *verdicts) keep(u *upstream.Upstream) {
	v.mu.Lock()
	defer v.mu.Unlock()
	key := verdictKey(u.Spec())
	_, had := v.seen[key]
	switch now := u.Early(); {
	case now == upstream.EarlyUnknown:
		delete(v.seen, key)
	case !had && len(v.seen) >= maxVerdicts:
		return
	default:
		v.seen[key] = verdict{Carries: now == upstream.EarlyCarries, At: time.Now().UTC().Truncate(time.Second)}
	}
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// run writes the file whenever something has changed, until ctx ends.
func (v *verdicts) run(ctx context.Context, log *slog.Logger) {
	for {
		select {
		case <-v.changed:
		case <-ctx.Done():
			return
		}
		if err := v.save(); err != nil {
			log.Warn("cannot keep what was found out about early data", "err", err)
		}
	}
}

func (v *verdicts) save() error {
	v.mu.Lock()
	data, err := json.MarshalIndent(v.seen, "", "  ")
	v.mu.Unlock()
	if err == nil {
		err = config.WriteFileAtomic(v.path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", v.path, err)
	}
	return nil
}

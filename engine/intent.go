package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// intent is what the user wants, kept over restarts in StateDir/intent.json.
// The file is 0600: a chosen upstream may be a URL with a password.
type intent struct {
	Version  int    `json:"version"`
	On       bool   `json:"on"`
	Upstream string `json:"upstream"` // a name, a URL, or "" for the first one
	Proven   bool   `json:"proven"`   // has been On since the user last asked for it
	// By is the upstream by which it was On last; zero if it never was, or was
	// by a version that did not keep it. "The first one" may be another after a
	// restart, and without a configuration it is none at all.
	By exit `json:"by,omitzero"`
}

// exit is as much of an upstream as tells whether another is the same.
type exit struct {
	Name   string `json:"name"`
	Direct bool   `json:"direct"` // it is no proxy
}

func exitOf(u *upstream.Upstream) exit {
	s := u.Spec()
	return exit{Name: s.Name, Direct: s.Scheme == "direct"}
}

const (
	intentFile     = "intent.json"
	intentVersion  = 1
	intentMaxBytes = 64 << 10

	goodFile = "atlantic.toml.good"
)

// loadIntent reads the intent. No file is no intent; a file that cannot be
// understood is an error, and the engine then holds traffic instead of guessing.
func loadIntent(dir string) (intent, error) {
	path := filepath.Join(dir, intentFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return intent{Version: intentVersion}, nil
	}
	if err != nil {
		return intent{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return intent{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > intentMaxBytes {
		return intent{}, fmt.Errorf("%s: not a file of ours", path)
	}
	buf := make([]byte, info.Size())
	if _, err := f.ReadAt(buf, 0); err != nil {
		return intent{}, fmt.Errorf("read %s: %w", path, err)
	}
	var in intent
	dec := json.NewDecoder(bytes.NewReader(buf))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return intent{}, fmt.Errorf("%s: %w", path, err)
	}
	if dec.More() {
		return intent{}, fmt.Errorf("%s: something follows the intent", path)
	}
	if in.Version != intentVersion {
		return intent{}, fmt.Errorf("%s: version %d was written by another version of this program", path, in.Version)
	}
	return in, nil
}

// saveIntent replaces the file atomically, unless it says that already: what
// cannot be written need not be said of what is there.
func saveIntent(dir string, in intent) error {
	in.Version = intentVersion
	if was, err := loadIntent(dir); err == nil && was == in {
		return nil
	}
	buf, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return err
	}
	return config.WriteFileAtomic(filepath.Join(dir, intentFile), append(buf, '\n'), 0o600)
}

// Bound reports whether what is kept in stateDir binds a service that starts:
// it was on and has worked, or nobody can tell. Such a service holds traffic
// rather than let it go another way, whatever has become of its configuration.
func Bound(stateDir string) bool {
	in, err := loadIntent(stateDir)
	return err != nil || in.On && in.Proven
}

// LastGood reads the configuration that was in force when traffic last went
// through.
func LastGood(stateDir string) (*config.Config, error) {
	path := filepath.Join(stateDir, goodFile)
	cfg, err := config.Load(path)
	if err == nil && cfg.Path == "" {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	return cfg, err
}

// saveGood keeps the text of a configuration that has worked. It may hold
// passwords, so it is 0600 whatever the file's mode is. Without a text there was
// no file, and nothing is to be gone back to.
func saveGood(dir string, text []byte) error {
	path := filepath.Join(dir, goodFile)
	if text == nil {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, text) {
		return nil
	}
	return config.WriteFileAtomic(path, text, 0o600)
}

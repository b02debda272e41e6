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
)

// intent is what the user wants, kept over restarts in StateDir/intent.json.
// The file is 0600: a chosen upstream may be a URL with a password.
type intent struct {
	Version  int    `json:"version"`
	On       bool   `json:"on"`
	Upstream string `json:"upstream"` // a name, a URL, or "" for the first one
	Proven   bool   `json:"proven"`   // has been On since the user last asked for it
}

const (
	intentVersion  = 1
	intentMaxBytes = 64 << 10
)

// loadIntent reads the intent. No file is no intent; a file that cannot be
// understood is an error, and the engine then holds traffic instead of guessing.
func loadIntent(dir string) (intent, error) {
	path := filepath.Join(dir, "intent.json")
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

// saveIntent replaces the file atomically.
func saveIntent(dir string, in intent) error {
	in.Version = intentVersion
	buf, err := json.MarshalIndent(in, "", "  ")
	if err != nil {
		return err
	}
	return config.WriteFileAtomic(filepath.Join(dir, "intent.json"), append(buf, '\n'), 0o600)
}

package darwin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// journal is the file that lists what we have added, or are about to: written
// before each change, so that a crash leaves nothing unknown.
type journal struct{ path string }

func newJournal(stateDir string) journal {
	return journal{filepath.Join(stateDir, "journal.json")}
}

// load returns the objects of a run that did not end properly, none if there
// was none.
func (j journal) load() ([]object, error) {
	b, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	var objects []object
	if err := json.Unmarshal(b, &objects); err != nil {
		return nil, fmt.Errorf("read the journal %s: %w", j.path, err)
	}
	return objects, nil
}

// save replaces the journal, whole; no objects removes it. It has to outlive the
// process only: what it lists does not outlive the system either.
func (j journal) save(objects []object) error {
	if len(objects) == 0 {
		if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clear the journal: %w", err)
		}
		return nil
	}
	b, err := json.Marshal(objects)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(j.path), 0o700); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(j.path), "journal-*")
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), j.path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

package linux

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func ruleOp(pref int) op { return op{Kind: opRule, Family: 4, Pref: pref, Table: tableMain} }

func prefs(entries []entry) []int {
	var p []int
	for _, e := range entries {
		p = append(p, e.Op.Pref)
	}
	return p
}

func openTestJournal(t *testing.T, dir string) *journal {
	t.Helper()
	j, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.close)
	return j
}

func add(t *testing.T, j *journal, o op) int {
	t.Helper()
	entries, err := j.add(o)
	if err != nil {
		t.Fatal(err)
	}
	return entries[0].Seq
}

func TestJournalRemembersWhatIsInForce(t *testing.T) {
	dir := t.TempDir()
	j := openTestJournal(t, dir)
	add(t, j, ruleOp(1))
	two := add(t, j, ruleOp(2))
	add(t, j, ruleOp(3))
	if err := j.undone(two); err != nil {
		t.Fatal(err)
	}
	again := openTestJournal(t, dir)
	if got := prefs(again.pending); len(got) != 2 || got[0] != 1 || got[1] != 3 {
		t.Fatalf("in force %v, want 1 and 3", got)
	}
	if seq := add(t, again, ruleOp(4)); seq <= 3 {
		t.Errorf("sequence number %d was used before", seq)
	}
	for len(again.pending) > 0 {
		if err := again.undone(again.pending[0].Seq); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, journalName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is still there with nothing in force: %v", err)
	}
}

// A journal cut at any byte opens, and holds the records that were whole.
func TestJournalCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	j := openTestJournal(t, dir)
	for i := range 4 {
		add(t, j, ruleOp(i+1))
	}
	path := filepath.Join(dir, journalName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) + 1 {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		cut, err := openJournal(dir)
		if err != nil {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
		want := max(bytes.Count(whole[:n], []byte("\n"))-1, 0)
		if len(cut.pending) != want {
			t.Fatalf("cut to %d bytes: %d in force, want %d", n, len(cut.pending), want)
		}
	}
}

func TestJournalRefused(t *testing.T) {
	good, _ := formatLine(journalHeader{Version: journalVersion, Boot: bootID()})
	o := ruleOp(1)
	record, _ := formatLine(entry{Seq: 1, Op: &o})
	future, _ := formatLine(journalHeader{Version: 99})
	damaged := bytes.Replace(record, []byte("rule"), []byte("rul3"), 1)
	tests := map[string]struct {
		make func(path string) error
		says string
		left int // records that could be read
	}{
		"damaged in the middle": {
			func(p string) error {
				return os.WriteFile(p, bytes.Join([][]byte{good, record, damaged, record}, nil), 0o600)
			}, "line 3 is damaged", 2},
		"future version": {
			func(p string) error { return os.WriteFile(p, append(future, record...), 0o600) }, "version 99", 0},
		"symlink": {
			func(p string) error { return os.Symlink("/etc/passwd", p) }, "symbolic link", 0},
		"writable by others": {
			func(p string) error {
				if err := os.WriteFile(p, good, 0o600); err != nil {
					return err
				}
				return os.Chmod(p, 0o622)
			}, "others may write", 0},
		"directory": {func(p string) error { return os.Mkdir(p, 0o700) }, "not a regular file", 0},
	}
	if os.Getuid() == 0 {
		tests["foreign owner"] = struct {
			make func(path string) error
			says string
			left int
		}{func(p string) error {
			if err := os.WriteFile(p, good, 0o600); err != nil {
				return err
			}
			return os.Chown(p, 12345, 0)
		}, "belongs to user 12345", 0}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tt.make(filepath.Join(dir, journalName)); err != nil {
				t.Fatal(err)
			}
			j, err := openJournal(dir)
			if !errors.Is(err, errJournal) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want one that says %q", err, tt.says)
			}
			if len(j.pending) != tt.left {
				t.Errorf("%d records could be read, want %d", len(j.pending), tt.left)
			}
		})
	}
}

func TestJournalOfAnotherBoot(t *testing.T) {
	dir := t.TempDir()
	header, _ := formatLine(journalHeader{Version: journalVersion, Boot: "another"})
	rule := ruleOp(1)
	first, _ := formatLine(entry{Seq: 1, Op: &rule})
	second, _ := formatLine(entry{Seq: 2, Op: &op{Kind: opDNS, Backend: dnsFile, File: &savedFile{Kind: kindMissing}}})
	if err := os.WriteFile(filepath.Join(dir, journalName), bytes.Join([][]byte{header, first, second}, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	j := openTestJournal(t, dir)
	if len(j.pending) != 1 || j.pending[0].Op.Kind != opDNS {
		t.Errorf("in force %v: only what is on disk outlives a boot", j.pending)
	}
}

func TestJournalDoesNotGrow(t *testing.T) {
	dir := t.TempDir()
	j := openTestJournal(t, dir)
	add(t, j, ruleOp(1))
	for range 2 * compactAfter {
		if err := j.undone(add(t, j, ruleOp(2))); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(compactAfter * 200); info.Size() > limit {
		t.Errorf("%d bytes after %d changes, want under %d", info.Size(), 2*compactAfter, limit)
	}
}

func FuzzParseJournal(f *testing.F) {
	header, _ := formatLine(journalHeader{Version: journalVersion, Boot: "b"})
	o := ruleOp(7)
	record, _ := formatLine(entry{Seq: 1, Op: &o})
	gone, _ := formatLine(entry{Seq: 1, Undone: true})
	f.Add(bytes.Join([][]byte{header, record, gone}, nil))
	f.Add(append(header, record...))
	f.Add([]byte("00000000 {}\n\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, entries, err := parseJournal(data)
		if err != nil && !errors.Is(err, errJournal) {
			t.Fatalf("an error of another kind: %v", err)
		}
		for _, e := range entries {
			if e.Op == nil {
				t.Fatal("a record without an operation")
			}
			_ = e.Op.String()
		}
	})
}

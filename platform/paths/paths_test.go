//go:build unix

package paths

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckDir(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: directories of other users cannot be made")
	}
	top := t.TempDir()
	dir := func(name string, uid, gid int, mode os.FileMode) string {
		d := filepath.Join(top, name)
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chown(d, uid, gid), os.Chmod(d, mode)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	link := filepath.Join(dir("links", 0, 0, 0o755), "link")
	if err := os.Symlink(dir("open", 0, 0, 0o777), link); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir("worker", 1000, 1000, 0o755), "link")
	if err := os.Symlink(dir("ours", 0, 0, 0o755), inside); err != nil {
		t.Fatal(err)
	}
	dir("open/ours", 0, 0, 0o755)
	for _, tc := range []struct {
		dir  string
		also []int
		want string // "" if it is safe
	}{
		{dir("ours", 0, 0, 0o755), nil, ""},
		{dir("sticky", 0, 0, 0o777|os.ModeSticky), nil, ""},
		{dir("root's group", 0, 0, 0o775), nil, ""},
		{dir("open", 0, 0, 0o777), nil, "everybody may write"},
		{top + "/open/ours", nil, "open: everybody may write"},
		{link, nil, "everybody may write"},
		{inside, nil, "worker: user 1000 owns it"}, // the link can be turned elsewhere
		{dir("group", 0, 1000, 0o775), nil, "group 1000 may write"},
		{dir("theirs", 1000, 1000, 0o775), nil, "user 1000 owns it"},
		{dir("theirs", 1000, 1000, 0o775), []int{1000}, ""},
		{dir("theirs, sticky", 1000, 1000, 0o777|os.ModeSticky), nil, "user 1000 owns it"},
	} {
		err := CheckDir(tc.dir, tc.also...)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.dir, err, tc.want)
		}
		if bad := (*DirError)(nil); err != nil && (!errors.As(err, &bad) || bad.Hint == "") {
			t.Errorf("%s: %v has no hint", tc.dir, err)
		}
	}
}

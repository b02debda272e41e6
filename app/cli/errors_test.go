package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/app/client"
)

// A service that does not answer may be one whose configuration is wrong.
func TestAbsentNamesTheLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "atlantic.toml")
	if f := absent(client.ErrAbsent, path); strings.Contains(f.msg, "configuration") {
		t.Errorf("without a file: %q", f.msg)
	}
	if err := os.WriteFile(path, []byte("[tun]\nstak = \"kernel\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := absent(client.ErrAbsent, path)
	if f.code != exitAbsent || !strings.Contains(f.msg, path+":2:1: unknown key") || !strings.HasPrefix(f.hint, "mend that; then start it: ") {
		t.Errorf("%+v", f)
	}
}

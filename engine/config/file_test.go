//go:build unix

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLoadMissingIsDefault(t *testing.T) {
	c, err := Load(filepath.Join(t.TempDir(), "no.toml"))
	if err != nil || !reflect.DeepEqual(c, Default()) {
		t.Error(c, err)
	}
}

func TestLoadRefusesWhatOthersWrite(t *testing.T) {
	for mode, want := range map[os.FileMode]string{0o666: "others may write", 0o620: "others may write", 0o644: "", 0o600: ""} {
		_, err := Load(write(t, mode, "[tun]\nmtu=1400\n"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%o: %v", mode, err)
		}
	}
	path := write(t, 0o600, "")
	dir := filepath.Dir(path)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), dir+": everybody may write in it") {
		t.Error(err)
	}
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err != nil {
		t.Error(err)
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root: a file of another user cannot be made")
	}
	if err := os.Chown(path, 12345, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Error(err)
	}
}

func TestLoadOddFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 100<<20); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "not a regular file", fifo: "not a regular file", dangling: "leads nowhere", big: "larger than 1024 KiB"} {
		start := time.Now()
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if time.Since(start) > 2*time.Second {
			t.Errorf("%s took %v", path, time.Since(start))
		}
	}
}

// TestLoadRefusesWhatAVendorDoes: what its template does not take is found
// before the service starts with it.
func TestLoadRefusesWhatAVendorDoes(t *testing.T) {
	own := write(t, 0o600, "name = 'Own'\nusername = '{user}-{nobody}'\n")
	for provider, want := range map[string]string{
		"kind='netnut'\nusername='u'\nzone='z'":                       "does not take zone",
		"kind='generic'\nusername='u'":                                "needs host and port",
		"kind='generic'\nusername='u'\nhost='h'\nport=1\ncity='c'":    "no place {city}",
		"kind='oxylabs'\nusername='u'\npassword='p'\nscheme='socks5'": "",
		"username='u'\ntemplate='" + own + "'":                        "no [[gateway]]",
	} {
		_, err := Load(write(t, 0o600, "[[provider]]\nname='x'\n"+provider+"\n"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "provider \"x\"") != 1) {
			t.Errorf("%s: %v", provider, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	t.Setenv("ATLANTIC_TEST_PW", "from env")
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return "file:" + p
	}
	tests := []struct {
		mode           os.FileMode
		password, want string
		err            string
	}{
		{0o644, "env:ATLANTIC_TEST_PW", "from env", ""},
		{0o644, "env:ATLANTIC_NO_SUCH", "", "no such variable"},
		{0o644, file("ok", "s3cret\r\n", 0o600), "s3cret", ""},
		{0o644, file("open", "s3cret\n", 0o644), "", "everybody may read"},
		{0o644, file("empty", "\n", 0o600), "", "is empty"},
		{0o644, file("big", strings.Repeat("x", 5000), 0o600), "", "larger than 4 KiB"},
		{0o644, "file:/no/such/file", "", "no such file"},
		{0o644, "file:relative", "", "absolute path"},
		{0o600, "inline", "inline", ""},
		{0o640, "inline", "", "a file that others may read (mode 0640)"},
	}
	for _, tt := range tests {
		path := write(t, tt.mode, "[[upstream]]\nname='a'\nurl='socks5://h'\nusername='u'\npassword='"+tt.password+"'\n")
		c, err := Load(path)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), path+":5:1") {
				t.Errorf("%s: %v", tt.password, err)
			}
			continue
		}
		if err != nil || c.Upstreams[0].Password.Reveal() != tt.want {
			t.Errorf("%s: %v", tt.password, err)
		}
	}
	path := write(t, 0o644, "[[upstream]]\nname='a'\nurl='socks5://u:inline@h'\n")
	if _, err := Load(path); err == nil || strings.Contains(err.Error(), "inline@") {
		t.Error(err)
	}
}

func TestSetKeepsCommentsAndMode(t *testing.T) {
	path := write(t, 0o640, strings.Replace(full, "url = \"https://u%40x:p%20w@", "url = \"https://", 1))
	for _, kv := range [][2]string{
		{"tun.mtu", "auto"}, {"tun.name", "t1"}, {"dns.servers", "1.1.1.1, tls://9.9.9.9"}, {"protect.lan", "true"},
		{"upstream.two.url", "http://h:1"}, {"upstream.two.username", "al"},
	} {
		if err := Set(path, kv[0], kv[1]); err != nil {
			t.Fatal(kv, err)
		}
	}
	got, _ := os.ReadFile(path)
	want := strings.NewReplacer("url = \"https://u%40x:p%20w@", "url = \"https://", "mtu = 1400", `mtu = "auto"`, `"tun9"`, `"t1"`,
		full[strings.Index(full, "servers = ["):strings.Index(full, "fake_range")], "servers = [\"1.1.1.1\", \"tls://9.9.9.9\"]\n",
		"lan = false", "lan = true", "socks5://192.0.2.1", "http://h:1", `"bob"`, `"al"`).Replace(full)
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Error(info.Mode())
	}
	before, _ := os.ReadFile(path)
	for _, kv := range [][2]string{{"tun.mtu", "5"}, {"tun.mtuu", "5"}, {"rule.1.via", "auto"}, {"tun", "x"}, {"upstream.no.url", "direct://"}, {"upstream.two.password", "inline"}} {
		if err := Set(path, kv[0], kv[1]); err == nil {
			t.Error(kv, "was taken")
		}
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("a refused value changed the file")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Error(left)
	}
}

// TestSetRefusesWhatAVendorDoes: as Load would with the file that came of it.
// The password need not be readable here.
func TestSetRefusesWhatAVendorDoes(t *testing.T) {
	path := write(t, 0o600, "[[provider]]\nname='x'\nkind='netnut'\nusername='u'\npassword='env:ATLANTIC_NO_SUCH'\n")
	if err := Set(path, "provider.x.country", "de"); err != nil {
		t.Error(err)
	}
	before, _ := os.ReadFile(path)
	if err := Set(path, "provider.x.zone", "z"); err == nil || !strings.Contains(err.Error(), "does not take zone") {
		t.Error(err)
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("a refused value changed the file")
	}
}

func TestSetAddsKeySectionFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "atlantic")
	path := filepath.Join(dir, "new.toml")
	if err := Set(path, "tun.mtu", "5"); err == nil {
		t.Error("a wrong value was taken")
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a wrong value made the directory")
	}
	for _, kv := range [][2]string{{"tun.mtu", "1400"}, {"tun.enabled", "false"}, {"listen.proxy", "127.0.0.1:1080"}} {
		if err := Set(path, kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
	got, _ := os.ReadFile(path)
	if want := "[tun]\nmtu = 1400\nenabled = false\n\n[listen]\nproxy = \"127.0.0.1:1080\"\n"; string(got) != want {
		t.Errorf("%q", got)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Error(info.Mode())
	}
	if info, _ := os.Stat(dir); info.Mode().Perm()&0o022 != 0 {
		t.Error(info.Mode())
	}
}

func write(t *testing.T, mode os.FileMode, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "atlantic.toml")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

package hint

import "testing"

func TestIn(t *testing.T) {
	for _, tc := range []struct{ arg0, socket, text, want string }{
		{"atlantic", "", "run: sudo atlantic rescue", "run: sudo atlantic rescue"},
		{"bin/atlantic", "", "run: sudo atlantic rescue", "run: sudo bin/atlantic rescue"},
		{"bin/atlantic", "", "atlantic up", "bin/atlantic up"},
		{"./atlantic", "", "run `atlantic up` or `atlantic down`", "run `./atlantic up` or `./atlantic down`"},
		{"/opt/a/atlanticd", "", "start it: sudo atlantic service start   (or, just once: sudo atlanticd run)",
			"start it: sudo /opt/a/atlantic service start   (or, just once: sudo /opt/a/atlanticd run)"},
		{"atlantic", "/tmp/my s", "see: atlantic status", "see: atlantic --socket '/tmp/my s' status"},
		{"bin/atlantic", "/tmp/s", "see: atlantic status; sudo atlantic service stop", "see: bin/atlantic --socket /tmp/s status; sudo bin/atlantic service stop"},
		// No commands of ours.
		{"bin/atlantic", "/s", "join the group atlantic: sudo usermod -aG atlantic $USER", "join the group atlantic: sudo usermod -aG atlantic $USER"},
		{"bin/atlantic", "/s", "install atlantic atlanticd /usr/local/bin", "install atlantic atlanticd /usr/local/bin"},
		{"bin/atlantic", "/s", "journalctl -u atlanticd", "journalctl -u atlanticd"},
		{"bin/atlantic", "/s", "remove the package: sudo apt remove atlantic, or", "remove the package: sudo apt remove atlantic, or"},
	} {
		p := For(tc.arg0, tc.socket)
		got := p.In(tc.text)
		if got != tc.want || p.In(got) != got {
			t.Errorf("%s: %q, again %q; want %q", tc.arg0, got, p.In(got), tc.want)
		}
	}
	if got := For("bin/atlanticd", "/tmp/s").Atlantic(); got != "bin/atlantic --socket /tmp/s" {
		t.Error(got)
	}
}

package cli

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// serviceScript installs and removes the service in a mount namespace where
// systemd is a script that says what it was asked.
const serviceScript = `
set -e
mkdir -p /etc/systemd/system /run/systemd
mount -t tmpfs t /etc/systemd/system
mount -t tmpfs t /run/systemd
mount --bind "$DIR" /mnt
run() { /mnt/atlantic "$@" && echo "code 0" || echo "code $?"; }
echo init >"$DIR/comm"
mount --bind "$DIR/comm" /proc/1/comm
for verb in start stop uninstall install; do echo "unmanaged $verb"; run service $verb; done
echo "unmanaged status"
run service status
umount /proc/1/comm
mkdir /run/systemd/system
for verb in start stop uninstall; do echo "absent $verb"; run service $verb; done
run service status
echo "temporary install"
"$DIR/atlantic" service install || echo "code $?"
chmod 777 /mnt
echo "unsafe install"
run service install
chmod 755 /mnt
ln -s /dev/null /etc/systemd/system/atlanticd.service
for verb in install start stop uninstall; do echo "masked $verb"; run service $verb; done
rm /etc/systemd/system/atlanticd.service
run service install
cat /etc/systemd/system/atlanticd.service
run service status
run service install
run service stop
touch "$DIR/unrestored"
echo "unrestored stop"
run service stop
rm "$DIR/unrestored"
for state in deactivating ""; do
	echo "$state" >"$DIR/state"
	echo "unsettled ($state) stop"; run service stop; run service status
done
rm "$DIR/state"
run service uninstall
ls -A /etc/systemd/system
echo "removed uninstall"
run service uninstall
run rescue --state /nowhere
cat "$DIR/log"
`

const fakeSystemctl = `#!/bin/sh
echo "systemctl $*" >>"$DIR/log"
case "$1" in
start) : >"$DIR/active" ;;
stop) rm -f "$DIR/active" ;;
is-active) test -e "$DIR/state" && { cat "$DIR/state"; exit 3; }
	test -e "$DIR/active" && echo active || { echo inactive; exit 3; } ;;
list-unit-files) ls /etc/systemd/system ;;
esac
`

func TestService(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("SKIPPED: not root on Linux: cannot install a service, even in a namespace")
	}
	if _, err := os.Stat(packagedUnit); err == nil {
		t.Skip("SKIPPED: the package is installed on this machine")
	}
	dir := t.TempDir()
	programs := map[string]string{
		"systemctl": fakeSystemctl,
		"groupadd":  "#!/bin/sh\necho \"groupadd $*\" >>\"$DIR/log\"\n",
		"atlanticd": "#!/bin/sh\necho \"atlanticd $*\"\ntest \"$*\" = rescue || exit 4\ntest ! -e \"$DIR/unrestored\" || exit 1\n",
	}
	for name, text := range programs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(t, os.Args[0], filepath.Join(dir, "atlantic")) // TestMain goes by the name
	cmd := exec.Command("unshare", "-m", "sh", "-c", serviceScript)
	cmd.Env = append(os.Environ(), "DIR="+dir, "PATH="+dir+":"+os.Getenv("PATH"), "ATLANTIC_SOCKET="+filepath.Join(dir, "none"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	const noManager = "\nerror: this system has no service manager that is known\nhint:  run it in the foreground: sudo atlanticd run\ncode 5\n"
	const isMasked = "\nerror: the service is masked: systemd will not start it\nhint:  unmask it: sudo systemctl unmask atlanticd\ncode 1\n"
	const notInstalled = "\nerror: the service is not installed\nhint:  " + installHint + "\ncode 5\n"
	for _, want := range []string{
		"unmanaged start" + noManager, "unmanaged stop" + noManager, "unmanaged uninstall" + noManager, "unmanaged install" + noManager,
		"unmanaged status\nthe service is not installed; it does not answer on its socket\nhint:  run it in the foreground: sudo atlanticd run\ncode 5\n",
		"absent start" + notInstalled, "absent stop" + notInstalled, "absent uninstall" + notInstalled, "removed uninstall" + notInstalled,
		"the service is not installed; it does not answer on its socket\nhint:  install it: sudo atlantic service install",
		"installed; it starts with this computer\n",
		"systemctl enable atlanticd.service\n",
		"systemctl start atlanticd.service\n",
		"error: the service was started but does not answer: the service is not running", // nothing serves the socket here
		"temporary install\nerror: a service cannot run " + dir + "/atlanticd: it has a /tmp/ of its own\nhint:  move both programs: sudo install atlantic atlanticd /usr/local/bin\ncode 1\n",
		"unsafe install\nerror: root cannot safely run /mnt/atlanticd: /mnt: everybody may write in it\n",
		"masked install" + isMasked, "masked start" + isMasked, "masked stop" + isMasked, "masked uninstall" + isMasked,
		"ExecStart=/mnt/atlanticd run --config /etc/atlantic/atlantic.toml --state /var/lib/atlantic\n", "NoNewPrivileges=yes\n",
		"unrestored stop\nstopped\nerror: the network is not as it was before: atlanticd rescue\nhint:  try again: sudo atlantic rescue\ncode 1\n",
		"Description=AtlanticProxy: sends",
		"installed with linux-systemd, running; it does not",
		"error: the service is installed already",
		"stopped; the network is as it was before\ncode 0\n",
		"unsettled (deactivating) stop\nstopped; the network is as it was before\ncode 0\n",
		"unsettled () stop\nstopped; the network is as it was before\ncode 0\n",
		"the service is installed with linux-systemd, unknown; it does not answer",
		"removed; its configuration and state stay\ncode 0\n",
		"atlanticd rescue --state /nowhere\ncode 4\n",
	} {
		i := strings.Index(text, want)
		if i < 0 {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, in); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

# What the tests of the packages share. Sourced by test-deb.sh and test-rpm.sh,
# which set here.

failures=0
step() { echo "-- $*"; }
fail() {
	echo "FAIL: $*" >&2
	failures=$((failures + 1))
}
die() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}
is() { [ "$2" = "$3" ] || fail "$1: got '$2', want '$3'"; }
present() { [ -e "$root/$1" ] || fail "/$1 is missing"; }
absent() { [ ! -e "$root/$1" ] && [ ! -L "$root/$1" ] || fail "/$1 is there"; }

skip() {
	echo "== SKIPPED: $(basename "$0"): $*" # counted by lab/cmd/testreport
	exit 0
}

need_root() { [ "$(id -u)" = 0 ] || skip "not root: cannot install packages in a root of their own"; }

# new_root sets root, a fresh Debian or Ubuntu like this machine's, and work, the
# directory round it, which goes away with the script. scripts/roots makes it.
new_root() {
	suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[ -n "$suite" ] || skip "this system's release has no name to debootstrap it by"
	tarball=${XDG_CACHE_HOME:-$HOME/.cache}/atlantic/debian-$suite-$(dpkg --print-architecture).tar
	work=$(mktemp -d "${TMPDIR:-/tmp}/atlantic-$1.XXXXXX")
	root=$work/root
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' INT TERM HUP
	[ -f "$tarball" ] || "$here/../scripts/roots"
	[ -f "$tarball" ] || skip "no debootstrap, or it failed"
	mkdir "$root"
	tar -C "$root" -xf "$tarball"
	[ ! -e "$root/etc/resolv.conf" ] || cp -a "$root/etc/resolv.conf" "$work/resolv.conf"
}

# snapshot lists every file with type, mode, owner, size or target and checksum.
# Left out: logs, rpm's database, and the backups and locks of dpkg and passwd.
snapshot() {
	(cd "$root" && find . -printf '%y %m %U:%G %p %l\n' |
		grep -Ev ' \./(var/log/|var/lib/rpm|var/lib/dpkg/[a-z-]*(-old|lock[a-z-]*) |var/cache/debconf|var/cache/ldconfig|etc/(group|gshadow|passwd|shadow|subuid|subgid)- |etc/\.pwd\.lock )' | sort -k4)
	(cd "$root" && find etc var usr/share -type f ! -path 'var/log/*' ! -path 'var/cache/*' ! -path 'var/lib/rpm/*' \
		! -name '*-old' ! -path 'etc/*-' ! -name '*lock*' -print0 | sort -z | xargs -0 sha256sum)
}

in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }

# start_machine makes a machine of the root: namespaces of its own for network,
# mounts and processes, in which it is process 1's root, and an uplink. It sets
# machine, the process in it; in_machine runs a command there with the root's
# programs, in_network one of this machine's in its network.
start_machine() {
	mkdir -p "$root/dev/net"
	[ -e "$root/dev/net/tun" ] || mknod "$root/dev/net/tun" c 10 200
	unshare -n -m -p -f --kill-child chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		sh -c 'mount -t proc proc /proc && exec sleep 600' &
	holder=$!
	machine=
	for _ in $(seq 100); do
		machine=$(cat "/proc/$holder/task/$holder/children" 2>/dev/null | tr -d ' ')
		[ -z "$machine" ] || [ "$(tr '\0' ' ' <"/proc/$machine/cmdline")" != 'sleep 600 ' ] || break
		sleep 0.1
	done
	[ -n "$machine" ] || die "the machine of the test does not start"
	in_network ip link set lo up
	in_network ip link add up0 type veth peer name up1
	in_network ip link set up1 up
	in_network ip link set up0 up
	in_network ip address add 192.0.2.2/24 dev up0
	in_network ip route add default via 192.0.2.1
}

end_machine() {
	kill -9 "$holder" 2>/dev/null || true
	wait "$holder" 2>/dev/null || true
	rm -f "$root/dev/net/tun"
	rmdir "$root/dev/net" 2>/dev/null || true
}

in_machine() { nsenter -t "$machine" -n -m -p -r -w /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
in_network() { nsenter -t "$machine" -n "$@"; }

# network prints what a service changes: rules, tables, devices, the resolver.
network() {
	in_network ip rule
	in_network ip -6 rule
	in_network ip -br link | awk '{ print $1 }'
	in_network nft list tables
	cat "$root/etc/resolv.conf"
}

# start_service starts the installed service in the machine by hand, as where
# there is no systemd, and waits until it is on.
start_service() {
	in_machine sh -c 'setsid atlanticd run --up >/var/log/atlanticd.log 2>&1 & echo $!' >"$work/service"
	for _ in $(seq 100); do
		! in_machine atlantic status >"$work/status" 2>&1 || return 0
		sleep 0.1
	done
	fail "the service does not come up: $(cat "$work/status" "$root/var/log/atlanticd.log")"
}

# removal_restores running|crash ARGUMENT… checks that remove_in_machine ARGUMENT…
# ends a service that runs by itself, or undoes what a killed one has left.
removal_restores() {
	grep -q stand-in "$work/version" && { echo "SKIPPED: removing with the service on: bin/ is not built" >&2; return; }
	end=$1
	shift
	start_machine
	echo 'nameserver 192.0.2.53' >"$root/etc/resolv.conf"
	network >"$work/network"
	start_service
	! network | cmp -s - "$work/network" || fail "the service changes nothing: the check is void"
	[ "$end" != crash ] || in_machine sh -c "kill -9 $(cat "$work/service")"
	remove_in_machine "$@" >"$work/remove.log" 2>&1 || fail "$*: $(cat "$work/remove.log")"
	network >"$work/network.after"
	diff "$work/network" "$work/network.after" >&2 || fail "$end, then removed: the network is not as it was"
	[ "$end" = crash ] || ! in_machine readlink "/proc/$(cat "$work/service")/exe" >/dev/null 2>&1 || fail "removed, and the service runs on"
	end_machine
	rm -f "$root/var/log/atlanticd.log" "$root/etc/resolv.conf"
	[ ! -e "$work/resolv.conf" ] || cp -a "$work/resolv.conf" "$root/etc/resolv.conf"
}

# build_packages FORMAT builds from bin/ and prints the path.
build_packages() {
	bin=$here/../bin
	if [ ! -x "$bin/atlantic" ] || [ ! -x "$bin/atlanticd" ]; then
		bin=$work/bin
		mkdir -p "$bin"
		echo "bin/ is not built: testing with stand-ins" >&2
		printf 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("stand-in") }\n' >"$bin/main.go"
		for name in atlantic atlanticd; do
			(cd "$bin" && CGO_ENABLED=0 go build -o "$name" main.go)
		done
	fi
	(cd "$here" && go run . -formats "$1" -version "${VERSION:-v0.0.1}" -bin "$bin" -out "$work")
}

# check_files checks what both packages put on the disk.
check_files() {
	while read -r mode path; do
		is "/$path" "$(stat -c '%a %U:%G' "$root/$path" 2>&1)" "$mode root:root"
	done <<-END
		755 usr/bin/atlantic
		755 usr/bin/atlanticd
		644 lib/systemd/system/atlanticd.service
		644 etc/xdg/autostart/atlantic.desktop
		644 usr/share/applications/atlantic.desktop
		644 usr/share/icons/hicolor/48x48/apps/atlantic.png
		644 usr/share/icons/hicolor/256x256/apps/atlantic.png
		644 usr/share/doc/atlantic/atlantic.toml.example
		644 usr/share/doc/atlantic/copyright
		644 usr/share/doc/atlantic/changelog.gz
		644 usr/share/man/man1/atlantic.1.gz
		644 usr/share/man/man8/atlanticd.8.gz
	END
	grep -q '^atlantic:' "$root/etc/group" || fail "no group atlantic"
	for zipped in usr/share/doc/atlantic/changelog.gz usr/share/man/man1/atlantic.1.gz; do
		gzip -t "$root/$zipped" || fail "/$zipped is damaged"
	done
	chroot "$root" /usr/bin/atlantic version >"$work/version" 2>&1 || fail "atlantic version: $(cat "$work/version")"
	if ! grep -q stand-in "$work/version"; then
		chroot "$root" /usr/bin/atlantic config check /usr/share/doc/atlantic/atlantic.toml.example >"$work/check" 2>&1 ||
			fail "the example configuration: $(cat "$work/check")"
	fi
	if command -v systemd-analyze >/dev/null; then
		systemd-analyze verify --root="$root" --man=no --recursive-errors=no /lib/systemd/system/atlanticd.service >"$work/verify" 2>&1 ||
			fail "the unit: $(cat "$work/verify")"
	fi
	if command -v desktop-file-validate >/dev/null; then
		desktop-file-validate "$root/usr/share/applications/atlantic.desktop" "$root/etc/xdg/autostart/atlantic.desktop" ||
			fail "the desktop entries"
	fi
}

finish() {
	[ "$failures" = 0 ] || die "$failures checks failed"
	echo "ok: the $1 installs, runs and leaves nothing"
}

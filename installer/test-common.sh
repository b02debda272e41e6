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
	echo "SKIPPED: $*" >&2
	exit 0
}

need_root() { [ "$(id -u)" = 0 ] || skip "not root: cannot install packages in a root of their own"; }

# new_root sets root, a fresh Debian or Ubuntu like this machine's, and work, the
# directory round it, which goes away with the script. It is kept as a tarball.
new_root() {
	suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[ -n "$suite" ] || skip "this system's release has no name to debootstrap it by"
	tarball=${XDG_CACHE_HOME:-$HOME/.cache}/atlantic/debian-$suite-$(dpkg --print-architecture).tar
	work=$(mktemp -d "${TMPDIR:-/tmp}/atlantic-$1.XXXXXX")
	root=$work/root
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' INT TERM HUP
	[ -f "$tarball" ] || make_root
	mkdir "$root"
	tar -C "$root" -xf "$tarball"
}

make_root() {
	command -v debootstrap >/dev/null || skip "no debootstrap: apt-get install debootstrap"
	mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
		awk -v s="$suite" '$2 == s && $3 == "main" { print $1; exit }')
	[ -n "$mirror" ] || mirror=${MIRROR:-}
	[ -n "$mirror" ] || skip "apt knows no mirror of $suite: set MIRROR"
	debootstrap --variant=minbase "$suite" "$work/new" "$mirror" >"$work/debootstrap.log" 2>&1 ||
		{ tail "$work/debootstrap.log" >&2; skip "debootstrap of $suite failed"; }
	mkdir -p "$(dirname "$tarball")"
	tar -C "$work/new" -cf "$tarball.$$" .
	mv "$tarball.$$" "$tarball"
	rm -rf "$work/new"
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

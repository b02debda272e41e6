#!/bin/sh
# Installs the .deb in a Debian root and checks it: files, modes, group, unit,
# the programs, an upgrade, remove, purge; and that nothing is left.
#
#     installer/test-deb.sh [FILE.deb]
#
# Without FILE it builds one from bin/, or from stand-ins where nothing is built
# yet. Needs root and debootstrap; the root is kept as a tarball in
# ${XDG_CACHE_HOME:-~/.cache}/atlantic, made from this machine's own mirror.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/test-common.sh"

need_root
suite=bookworm
arch=$(dpkg --print-architecture)
tarball=${XDG_CACHE_HOME:-$HOME/.cache}/atlantic/debian-$suite-$arch.tar

work=$(mktemp -d "${TMPDIR:-/tmp}/atlantic-deb.XXXXXX")
root=$work/root
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

make_root() {
	command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
	mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
		awk -v s="$suite" '$2 == s && $3 == "main" { print $1; exit }')
	[ -n "$mirror" ] || mirror=${DEBIAN_MIRROR:-} # not on a Debian $suite
	[ -n "$mirror" ] || die "apt knows no mirror of Debian $suite; set DEBIAN_MIRROR"
	debootstrap --variant=minbase "$suite" "$work/new" "$mirror" >"$work/debootstrap.log" 2>&1 ||
		{ tail "$work/debootstrap.log" >&2; die "debootstrap failed"; }
	mkdir -p "$(dirname "$tarball")"
	tar -C "$work/new" -cf "$tarball.$$" .
	mv "$tarball.$$" "$tarball"
	rm -rf "$work/new"
}

# snapshot lists every file with type, mode, owner, size or target and checksum.
# Left out: logs, dpkg's and passwd's own backups and locks.
snapshot() {
	(cd "$root" && find . -printf '%y %m %U:%G %p %l\n' |
		grep -Ev ' \./(var/log/|var/lib/dpkg/[a-z-]*(-old|lock[a-z-]*) |var/cache/debconf|var/cache/ldconfig|etc/(group|gshadow|passwd|shadow|subuid|subgid)- |etc/\.pwd\.lock )' | sort -k4)
	(cd "$root" && find etc var usr/share -type f ! -path 'var/log/*' ! -path 'var/cache/*' \
		! -name '*-old' ! -path 'etc/*-' ! -name '*lock*' -print0 | sort -z | xargs -0 sha256sum)
}

in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }

[ -f "$tarball" ] || make_root
mkdir "$root"
tar -C "$root" -xf "$tarball"
deb=${1:-}
[ -n "$deb" ] || deb=$(build_packages deb)
cp "$deb" "$root/atlantic.deb"
snapshot >"$work/before"

step "install"
in_root dpkg -i /atlantic.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; die "dpkg -i failed"; }
check_files
is "package is configured" "$(in_root dpkg-query -W -f '${db:Status-Abbrev}' atlantic)" "ii "
is "dependencies are met" "$(in_root dpkg --audit)" ""
is "conffiles" "$(in_root dpkg-query -W -f '${Conffiles}' atlantic | awk '{print $1}' | xargs)" "/etc/xdg/autostart/atlantic.desktop"
is "unit is enabled" "$(readlink "$root/etc/systemd/system/multi-user.target.wants/atlanticd.service")" "/lib/systemd/system/atlanticd.service"
(cd "$root" && in_root sh -c 'cd / && md5sum --quiet -c /var/lib/dpkg/info/atlantic.md5sums') || fail "checksums of the files"

step "upgrade keeps the administrator's word"
rm "$root/etc/systemd/system/multi-user.target.wants/atlanticd.service" "$root/etc/systemd/system/atlantic.service" # systemctl disable
mkdir -p "$root/etc/atlantic" "$root/var/lib/atlantic"
echo '[listen]' >"$root/etc/atlantic/atlantic.toml"
echo state >"$root/var/lib/atlantic/intent.json"
in_root dpkg -i /atlantic.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; die "upgrade failed"; }
absent "etc/systemd/system/multi-user.target.wants/atlanticd.service"
present "etc/atlantic/atlantic.toml"

step "remove keeps configuration and state"
in_root dpkg -r atlantic >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; die "dpkg -r failed"; }
absent usr/bin/atlanticd
absent lib/systemd/system/atlanticd.service
present etc/atlantic/atlantic.toml
present var/lib/atlantic/intent.json

step "purge leaves nothing"
in_root dpkg -P atlantic >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; die "dpkg -P failed"; }
snapshot >"$work/after"
diff "$work/before" "$work/after" >"$work/traces" || { cat "$work/traces" >&2; fail "traces are left"; }

finish "deb"

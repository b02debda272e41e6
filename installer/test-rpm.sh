#!/bin/sh
# Installs the .rpm in a root by rpm --root and checks it: files, modes, group,
# unit, the programs, an upgrade, erase; and that nothing is left.
#
#     installer/test-rpm.sh [FILE.rpm]
#
# The root is the Debian of test-deb.sh with a database of rpm in it: it has what
# the scripts call, but no rpm packages, hence --nodeps. Needs root, rpm and
# debootstrap.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/test-common.sh"

need_root
command -v rpm >/dev/null || skip "no rpm: apt-get install rpm"
new_root rpm
rpm=${1:-}
[ -n "$rpm" ] || rpm=$(build_packages rpm)
in_rpm() {
	rpm --root "$root" --dbpath /var/lib/rpm "$@" >"$work/rpm.log" 2>&1 || { cat "$work/rpm.log" >&2; die "rpm $* failed"; }
	! grep -qi 'error\|warning.*scriptlet' "$work/rpm.log" || fail "rpm $*: $(cat "$work/rpm.log")"
}
# rpm stays outside of the machine's root and goes into it for the scripts, which
# find the machine's processes there.
remove_in_machine() {
	nsenter -t "$machine" -n -p unshare -m sh -c 'mount -t proc proc "$0/proc" && exec rpm --root "$0" --dbpath /var/lib/rpm "$@"' "$root" "$@"
}
in_rpm --initdb
snapshot >"$work/before"

step "install"
in_rpm -i --nodeps "$rpm"
check_files
in_rpm -V --nodeps atlantic

for end in running crash; do
	step "erase, $end, restores the network"
	removal_restores $end -e --nodeps atlantic
	in_rpm -i --nodeps "$rpm"
done

step "upgrade keeps configuration and state"
mkdir -p "$root/etc/atlantic" "$root/var/lib/atlantic"
echo '[listen]' >"$root/etc/atlantic/atlantic.toml"
echo state >"$root/var/lib/atlantic/intent.json"
in_rpm -U --force --nodeps "$rpm"
check_files
present etc/atlantic/atlantic.toml
present var/lib/atlantic/intent.json

step "erase leaves the configuration and nothing else"
in_rpm -e --nodeps atlantic
present etc/atlantic/atlantic.toml
rm -r "$root/etc/atlantic"
# The icon theme's directories belong to hicolor-icon-theme and the like, which
# this root does not have.
for d in usr/share/icons/hicolor/*/apps usr/share/icons/hicolor/* usr/share/icons/hicolor usr/share/icons usr/share/applications etc/xdg/autostart etc/xdg; do
	(cd "$root" && for dir in $d; do rmdir "$dir" 2>/dev/null || true; done)
done
snapshot >"$work/after"
diff "$work/before" "$work/after" >"$work/traces" || { cat "$work/traces" >&2; fail "traces are left"; }

finish "rpm"

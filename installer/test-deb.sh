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
new_root deb
deb=${1:-}
[ -n "$deb" ] || deb=$(build_packages deb)
cp "$deb" "$root/atlantic.deb"
remove_in_machine() { in_machine "$@"; }
snapshot >"$work/before"

step "install"
in_root dpkg -i /atlantic.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; die "dpkg -i failed"; }
check_files
is "package is configured" "$(in_root dpkg-query -W -f '${db:Status-Abbrev}' atlantic)" "ii "
is "dependencies are met" "$(in_root dpkg --audit)" ""
is "conffiles" "$(in_root dpkg-query -W -f '${Conffiles}' atlantic | awk '{print $1}' | xargs)" "/etc/xdg/autostart/atlantic.desktop"
is "unit is enabled" "$(readlink "$root/etc/systemd/system/multi-user.target.wants/atlanticd.service")" "/lib/systemd/system/atlanticd.service"
(cd "$root" && in_root sh -c 'cd / && md5sum --quiet -c /var/lib/dpkg/info/atlantic.md5sums') || fail "checksums of the files"

for end in running crash; do
	step "remove, $end, restores the network"
	removal_restores $end dpkg -r atlantic
	in_root dpkg -i /atlantic.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; die "installing again failed"; }
done

step "upgrade keeps the administrator's word"
rm "$root/etc/systemd/system/multi-user.target.wants/atlanticd.service" # systemctl disable
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
absent etc/systemd/system/atlanticd.service # no mask, which would keep service install away
present etc/atlantic/atlantic.toml
present var/lib/atlantic/intent.json

step "purge leaves nothing"
in_root dpkg -P atlantic >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; die "dpkg -P failed"; }
snapshot >"$work/after"
diff "$work/before" "$work/after" >"$work/traces" || { cat "$work/traces" >&2; fail "traces are left"; }

finish "deb"

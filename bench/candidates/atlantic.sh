# AtlanticProxy for the harness of TUN proxies (ATLANTICD is the service's path).
# Its DNS takeover must not reach the machine's own /etc: a mount namespace with
# a resolv.conf of its own stands in.
CAPS="socks5 http udp"
ROUTES=own
stack=${stack:-auto}
start() {
  mkdir -p "$WORK/atlantic"
  echo "nameserver 10.9.0.2" >"$WORK/atlantic/resolv.conf"
  cat >"$WORK/atlantic/atlantic.toml" <<T
[tun]
name = "$TUN"
stack = "$stack"
[listen]
proxy = ""
[[upstream]]
name = "bench"
url = "$UPSTREAM_PROTO://$UPSTREAM_HOST:$UPSTREAM_PORT"
T
  chmod 600 "$WORK/atlantic/atlantic.toml"
  exec unshare -m bash -c 'mount --bind "$0/resolv.conf" /etc/resolv.conf &&
    exec "$1" run --up --config "$0/atlantic.toml" --state "$0/state" --socket "$0/sock"' "$WORK/atlantic" "$ATLANTICD"
}

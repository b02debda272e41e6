// Package demo runs `make demo`: browsing and video over a small internet with
// 20 ms round trips, the predecessor's way and ours side by side.
//
//	browser ─► (direct | one proxy connection per request | atlanticd's TUN) ─► CONNECT or SOCKS5 proxy ─► origin
//
// Everything happens in the lab's namespaces. Linux only, root only; used by
// lab/cmd/demo.
package demo

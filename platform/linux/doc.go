// Package linux is platform.Host on Linux.
//
//	NetConfig + facts ──plan──► []op ──reconcile──► journal ► kernel, resolv.conf
//	                     pure    diff with what     fsync     do, or undo in
//	                             is in force        first     reverse order
//
//	netlink, nftables, inotify ──monitor──► plan again ──► repaired rules, NetChange
//
// Every change is an op: one object of ours (a policy rule, a route, the nft
// table, a sysctl, the DNS setting) that knows how to be made and unmade. The
// planner turns the desired state into an ordered list of ops; reconcile undoes
// those no longer wanted and makes those that are missing. Each is journalled
// first, so that a crashed run is undone object by object by the next New.
//
// What belongs to us, and can therefore be removed without a journal too:
//
//	policy rules   priorities 5300 to 5331, protocol 65
//	routes         table 7891, protocol 65
//	marks          0x41540000 under mask 0xffff0000 (packets, conntrack)
//	nftables       tables inet atlantic, arp atlantic
//	device         the TUN, which vanishes with the process that made it
//
// app/atlanticd is the only importer. On other systems the package is empty.
package linux

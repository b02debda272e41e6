package linux

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Our table makes the kernel track every connection, and a proxy makes many
// short ones: two in the TUN or one past it, and one to the upstream. By default
// conntrack remembers each for 120 s after its end: 550 a second fill a table of
// 65,536, and a full table drops whatever else the machine begins. So the TCP
// connections that are ours get times of their own.

const briefTimeouts = "brief"

// briefPolicy is how many seconds conntrack remembers a TCP connection of ours,
// by state. One that has ended is soon forgotten; one that is half closed may be
// silent for minutes (60 s of CLOSE_WAIT by default would cut a redirected one);
// for open ones keep-alive is the sign of life.
func briefPolicy() expr.CtStatePolicyTimeout {
	return expr.CtStatePolicyTimeout{
		expr.CtStateTCPSYNSENT: 20, expr.CtStateTCPSYNRECV: 20,
		expr.CtStateTCPESTABLISHED: 3600,
		expr.CtStateTCPFINWAIT:     600, expr.CtStateTCPCLOSEWAIT: 600, expr.CtStateTCPLASTACK: 20,
		expr.CtStateTCPTIMEWAIT: 10, expr.CtStateTCPCLOSE: 5,
		expr.CtStateTCPRETRANS: 300, expr.CtStateTCPUNACK: 300,
	}
}

// forgetSoon adds briefPolicy to the table and returns the statement that gives
// it to a connection; only a TCP connection's first packet heeds it. Kernels
// without CONFIG_NF_CONNTRACK_TIMEOUT refuse it.
func forgetSoon(c *nftables.Conn, table *nftables.Table) []expr.Any {
	c.AddObj(&nftables.NamedObj{
		Table: table, Name: briefTimeouts, Type: nftables.ObjTypeCtTimeout,
		Obj: &expr.CtTimeout{L3Proto: unix.NFPROTO_INET, L4Proto: unix.IPPROTO_TCP, Policy: briefPolicy()},
	})
	return []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCtTimeout), Name: briefTimeouts}}
}

// isNew matches the first packet of a connection.
func isNew() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		masked(nfNew, 0),
		compare(expr.CmpOpNeq, native32(0)),
	}
}

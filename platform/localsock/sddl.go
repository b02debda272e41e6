package localsock

import (
	"fmt"
	"strings"
)

// pipeConnect is what a client of the pipe is granted and asks for: read and
// write, its attributes, READ_CONTROL and SYNCHRONIZE. It is FILE_GENERIC_READ |
// FILE_GENERIC_WRITE without 0x4, which on a pipe is FILE_CREATE_PIPE_INSTANCE:
// whoever has that could answer in the service's name.
const pipeConnect = 0x12019b

// pipeSDDL is the pipe's protected DACL: everything for SYSTEM, Administrators
// and the service's own account, a connection for whoever is logged on
// interactively, nothing for anybody else. There is no ACE against the network
// logon: other machines are refused by the pipe's own flag (see Listen), and an
// administrator in an SSH session has such a logon too.
func pipeSDDL(ownSID string) string {
	var b strings.Builder
	b.WriteString("D:P(A;;GA;;;SY)(A;;GA;;;BA)")
	if ownSID != "" {
		fmt.Fprintf(&b, "(A;;GA;;;%s)", ownSID)
	}
	fmt.Fprintf(&b, "(A;;%#x;;;IU)", pipeConnect)
	return b.String()
}

// Package localsock is the local door of the service: a unix socket, or a
// named pipe on Windows, on which each end knows who the other one is.
//
//	tray, CLI ── Dial ──►  socket / pipe  ◄── Listen ── service
//	     │                                        │
//	     └ server is root or this user?           └ PeerOf: who asks, may they write?
//
// Any local user may connect; what they may do is decided from the credentials
// that the kernel recorded, never from a file mode or a claim. It imports
// nothing of this project; engine/apiserver and app/client import it.
package localsock

import (
	"errors"
	"fmt"
)

// Group is the group whose members may write (unix).
const Group = "atlantic"

// MayWrite says, for a user who may not, who may and how to become one of them.
func MayWrite() string {
	if !groupExists() {
		return "run with sudo"
	}
	return "join the group " + Group + " (sudo usermod -aG " + Group + " $USER, then log in again), or run with sudo"
}

// PathVar is the environment variable that names the socket a client is to use.
const PathVar = "ATLANTIC_SOCKET"

// Peer is the user at the other end of a connection, as of the moment it
// connected.
type Peer struct {
	UID   int    // -1 on Windows
	Known bool   // false: the system did not tell; everything else is zero
	Admin bool   // may write: see PeerOf
	Name  string // login name, or the bare uid where it has none
}

// Errors that callers branch on; they are wrapped with the path.
var (
	// ErrRunning: another service owns this path.
	ErrRunning = errors.New("another atlanticd is running")
	// ErrForeignServer: what answers here is run by somebody else. A
	// ForeignServerError says by whom.
	ErrForeignServer = errors.New("the server belongs to another user")
)

// ForeignServerError is how Dial refuses a server that belongs to neither root
// (SYSTEM) nor this user. It matches ErrForeignServer.
type ForeignServerError struct {
	Path string
	UID  int    // its uid; -1 on Windows
	Name string // its account
}

func (e *ForeignServerError) Error() string {
	return fmt.Sprintf("%s: the server there is run by %s, neither the system nor you; not talking to it", e.Path, e.Name)
}

// Is makes errors.Is(err, ErrForeignServer) true.
func (e *ForeignServerError) Is(target error) bool { return target == ErrForeignServer }

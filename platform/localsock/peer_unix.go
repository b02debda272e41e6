//go:build linux || darwin

package localsock

import (
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
)

// PeerOf tells who is at the other end of a connection that Listen's listener
// accepted, from the credentials recorded when it connected. Admin are root,
// the user this process runs as, and members of Group: by the process's own
// groups where the system tells them, or by the group database. It reads that
// database, so ask once per connection.
func PeerOf(conn net.Conn) (Peer, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("peer of a %T: not a unix socket", conn)
	}
	uid, err := peerUID(uc)
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	p := Peer{UID: uid, Known: true, Name: userName(uid)}
	p.Admin = uid == 0 || uid == os.Geteuid() || inGroup(uc, uid, Group)
	return p, nil
}

func groupExists() bool {
	_, err := user.LookupGroup(Group)
	return err == nil
}

func inGroup(uc *net.UnixConn, uid int, group string) bool {
	g, err := user.LookupGroup(group)
	if err != nil {
		return false // no such group: nobody is in it
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return false
	}
	if slices.Contains(peerGroups(uc), gid) {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return false
	}
	ids, err := u.GroupIds() // the primary group is among them
	return err == nil && slices.Contains(ids, g.Gid)
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}

// control runs f on the connection's descriptor.
func control(uc *net.UnixConn, f func(fd int) error) error {
	raw, err := uc.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

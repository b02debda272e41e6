package localsock

import (
	"fmt"
	"net"

	"golang.org/x/sys/windows"
)

// PeerOf tells who is at the other end of a connection that Listen's listener
// accepted. Admin are SYSTEM, this process's own account, elevated members of
// Administrators, and users who are logged on interactively (console or remote
// desktop). The client's token comes by its process id: ask right after Accept,
// while the process that connected is still there.
func PeerOf(conn net.Conn) (Peer, error) {
	h, err := handle(conn)
	if err != nil {
		return Peer{}, err
	}
	var pid uint32
	if err := windows.GetNamedPipeClientProcessId(h, &pid); err != nil {
		return Peer{}, fmt.Errorf("client process of the pipe: %w", err)
	}
	token, err := processToken(pid)
	if err != nil {
		return Peer{}, fmt.Errorf("token of process %d: %w", pid, err)
	}
	defer token.Close()
	u, err := token.GetTokenUser()
	if err != nil {
		return Peer{}, fmt.Errorf("user of process %d: %w", pid, err)
	}
	own, err := ownUser()
	if err != nil {
		return Peer{}, err
	}
	p := Peer{UID: -1, Known: true, Name: accountName(u.User.Sid)}
	p.Admin = u.User.Sid.IsWellKnown(windows.WinLocalSystemSid) || u.User.Sid.Equals(own) ||
		member(token, windows.WinBuiltinAdministratorsSid) || member(token, windows.WinInteractiveSid)
	return p, nil
}

// processToken returns an impersonation token of the process, which is what
// CheckTokenMembership takes. It identifies only.
func processToken(pid uint32) (windows.Token, error) {
	proc, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return 0, err
	}
	defer windows.CloseHandle(proc)
	var primary, token windows.Token
	if err := windows.OpenProcessToken(proc, windows.TOKEN_QUERY|windows.TOKEN_DUPLICATE, &primary); err != nil {
		return 0, err
	}
	defer primary.Close()
	err = windows.DuplicateTokenEx(primary, windows.TOKEN_QUERY, nil, windows.SecurityIdentification, windows.TokenImpersonation, &token)
	return token, err
}

// member says whether the group counts for the token now: Administrators does
// not for a token that is not elevated.
func member(token windows.Token, group windows.WELL_KNOWN_SID_TYPE) bool {
	sid, err := windows.CreateWellKnownSid(group)
	if err != nil {
		return false
	}
	ok, err := token.IsMember(sid)
	return err == nil && ok
}

func groupExists() bool { return false }

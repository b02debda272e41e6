package localsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

const systemPath = `\\.\pipe\atlantic`

// DefaultPath returns where a service listens.
func DefaultPath() string { return systemPath }

// ClientPath returns where a client finds the service: ATLANTIC_SOCKET if it is
// set, otherwise the one place there is.
func ClientPath() string {
	if p := os.Getenv(PathVar); p != "" {
		return p
	}
	return systemPath
}

// Listen makes the named pipe at path and returns its listener. It must be the
// first to make that name (go-winio asks for FILE_CREATE, so a squatter's pipe
// is never joined), and no other machine gets in (FILE_PIPE_REJECT_REMOTE_CLIENTS,
// which go-winio sets). Errors match ErrRunning where the name is taken.
func Listen(path string) (net.Listener, error) {
	own, err := ownUser()
	if err != nil {
		return nil, err
	}
	ln, err := winio.ListenPipe(path, &winio.PipeConfig{
		SecurityDescriptor: pipeSDDL(own.String()),
		InputBufferSize:    64 << 10,
		OutputBufferSize:   64 << 10,
	})
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_ALREADY_EXISTS) || errors.Is(err, windows.ERROR_PIPE_BUSY) {
		return nil, fmt.Errorf("%s is taken: %w", path, ErrRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ln, nil
}

// Dial connects to the service at path. It fails with a ForeignServerError if
// the pipe was made by neither SYSTEM, an administrator nor this user: nothing
// has been sent then. The pipe's owner decides, which its maker cannot forge
// and any user may read, whereas a user may not look into a SYSTEM process; and
// a process id may have been given to another process since. A server cannot
// impersonate the caller, only identify it.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	conn, err := winio.DialPipeAccessImpLevel(ctx, path, pipeConnect, winio.PipeImpLevelIdentification)
	if err != nil {
		return nil, err
	}
	owner, err := pipeOwner(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: who runs the server: %w", path, err)
	}
	own, err := ownUser()
	if err != nil {
		conn.Close()
		return nil, err
	}
	if !owner.IsWellKnown(windows.WinLocalSystemSid) && !owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) && !owner.Equals(own) {
		conn.Close()
		return nil, &ForeignServerError{Path: path, UID: -1, Name: accountName(owner)}
	}
	return conn, nil
}

func pipeOwner(conn net.Conn) (*windows.SID, error) {
	h, err := handle(conn)
	if err != nil {
		return nil, err
	}
	sd, err := windows.GetSecurityInfo(h, windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return nil, err
	}
	owner, _, err := sd.Owner()
	return owner, err
}

// handle returns the pipe's handle, which stays the connection's.
func handle(conn net.Conn) (windows.Handle, error) {
	f, ok := conn.(interface{ Fd() uintptr })
	if !ok {
		return 0, fmt.Errorf("peer of a %T: not a named pipe", conn)
	}
	return windows.Handle(f.Fd()), nil
}

func ownUser() (*windows.SID, error) {
	u, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("own account: %w", err)
	}
	return u.User.Sid, nil
}

// accountName returns DOMAIN\user, or the SID where the system has no name.
func accountName(sid *windows.SID) string {
	name, domain, _, err := sid.LookupAccount("")
	if err != nil {
		return sid.String()
	}
	return domain + `\` + name
}

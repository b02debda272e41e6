package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kardianos/service"

	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
	"github.com/atlanticproxy/atlanticproxy/platform/paths"
)

func (a *app) install(ctx context.Context, s service.Service) error {
	daemon, err := existingDaemon()
	if err != nil {
		return err
	}
	if err := mayRunAsRoot(daemon); err != nil {
		return err
	}
	if _, err := s.Status(); !notInstalled(err) {
		return &failure{exitError, "the service is installed already", "start it: sudo atlantic service start"}
	}
	if err := s.Install(); err != nil {
		return fmt.Errorf("install the service: %w", err)
	}
	a.out.line("installed; it starts with this computer")
	a.ensureGroup(ctx)
	return a.start(ctx, s)
}

// mayRunAsRoot refuses a program that somebody could replace who could not
// become root otherwise, and one that the service would not find: it has a
// /tmp of its own.
func mayRunAsRoot(daemon string) error {
	const move = "move both programs: sudo install atlantic atlanticd /usr/local/bin"
	for _, tmp := range []string{"/tmp/", "/var/tmp/"} {
		if strings.HasPrefix(daemon, tmp) {
			return &failure{exitError, "a service cannot run " + daemon + ": it has a " + tmp + " of its own", move}
		}
	}
	var owners []int // who ran sudo is root already
	for _, name := range []string{"SUDO_UID", "SUDO_GID", "PKEXEC_UID"} {
		if id, err := strconv.Atoi(os.Getenv(name)); err == nil {
			owners = append(owners, id)
		}
	}
	err := paths.CheckDir(filepath.Dir(daemon), owners...)
	if bad := (*paths.DirError)(nil); errors.As(err, &bad) {
		return &failure{exitError, "root cannot safely run " + daemon + ": " + err.Error(), move + ", or: sudo " + bad.Hint}
	}
	return err
}

// ensureGroup makes the group whose members may steer the service, where the
// system has a command for that. Without it the service serves root alone.
func (a *app) ensureGroup(ctx context.Context) {
	if os.Geteuid() < 0 { // Windows asks for administrators instead
		return
	}
	if _, err := user.LookupGroup(localsock.Group); err == nil {
		return
	}
	text, err := exec.CommandContext(ctx, "groupadd", "--system", localsock.Group).CombinedOutput()
	if err != nil {
		a.err.line("there is no group %s, so only root may steer the service: groupadd: %v %s", localsock.Group, err, text)
		return
	}
	a.out.line("to steer it without sudo: sudo usermod -aG %s $USER, and log in again", localsock.Group)
}

func (a *app) uninstall(_ context.Context, s service.Service) error {
	if _, err := os.Stat(packagedUnit); err == nil {
		return &failure{exitError, "the service came with a package", "remove the package: sudo apt remove atlantic, or sudo rpm -e atlantic"}
	}
	if st, err := s.Status(); st == service.StatusRunning || err != nil { // it may be about to start again
		if err := s.Stop(); err != nil {
			return fmt.Errorf("stop the service: %w", err)
		}
	}
	if err := s.Uninstall(); err != nil {
		return fmt.Errorf("remove the service: %w", err)
	}
	a.out.line("removed; its configuration and state stay")
	return nil
}

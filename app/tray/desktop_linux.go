package tray

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"
)

// watcherName is the D-Bus name of what shows StatusNotifierItems: KDE, XFCE,
// Cinnamon, MATE and others have it; GNOME by an extension only.
const watcherName = "org.kde.StatusNotifierWatcher"

// trayName is ours on the session's bus.
const trayName = "io.github.atlanticproxy.Tray"

const noHostHint = `This desktop shows no tray icons (no ` + watcherName + ` on D-Bus).
On GNOME, install and enable the extension "AppIndicator and KStatusNotifierItem Support"
(Debian and Ubuntu: gnome-shell-extension-appindicator); or use the command line: atlantic status`

// Desktop tells whether there is a desktop that shows tray icons.
func Desktop() bool {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return false
	}
	return awaitHost(context.Background(), 0)
}

// awaitHost waits until something shows tray icons, d at most.
func awaitHost(ctx context.Context, d time.Duration) bool {
	conn, err := sessionBus()
	if err != nil {
		return false
	}
	defer conn.Close()
	for deadline := time.Now().Add(d); ; {
		var has bool
		err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, watcherName).Store(&has)
		if has || err != nil {
			return has
		}
		if time.Now().After(deadline) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// claimSession makes this the only tray of the desktop session. The channel is
// closed when the session is over; the claim ends with the process.
func claimSession() (<-chan struct{}, error) {
	conn, err := sessionBus()
	if err != nil {
		return nil, err
	}
	got, err := conn.RequestName(trayName, dbus.NameFlagDoNotQueue)
	if err != nil {
		return nil, fmt.Errorf("ask for the name %s: %w", trayName, err)
	}
	if got != dbus.RequestNameReplyPrimaryOwner {
		conn.Close()
		return nil, errors.New("the tray icon is there already")
	}
	return conn.Context().Done(), nil
}

// sessionBus connects to the session's bus, and never starts one.
func sessionBus() (*dbus.Conn, error) {
	address := os.Getenv("DBUS_SESSION_BUS_ADDRESS")
	if address == "" {
		path := filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "bus")
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("there is no desktop session: %w", err)
		}
		address = "unix:path=" + path
	}
	conn, err := dbus.Connect(address)
	if err != nil {
		return nil, fmt.Errorf("connect to the session bus: %w", err)
	}
	return conn, nil
}

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
(Debian and Ubuntu: gnome-shell-extension-appindicator); or use the command line: atlantic status
Waiting until something shows them; Ctrl-C ends it.`

// Desktop tells whether there is a desktop that shows tray icons.
func Desktop() bool {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // it shows them now, or not
	return awaitHost(ctx) == nil
}

// awaitHost waits until something shows tray icons. It fails when ctx or the
// session ends before that.
func awaitHost(ctx context.Context) error {
	conn, err := sessionBus()
	if err != nil {
		return err
	}
	defer conn.Close()
	appears := make(chan *dbus.Signal, 8)
	conn.Signal(appears)
	err = conn.AddMatchSignal(dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, watcherName))
	if err != nil {
		return fmt.Errorf("watch the session bus: %w", err)
	}
	for {
		var has bool
		err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, watcherName).Store(&has)
		if has || err != nil {
			return err
		}
		select {
		case <-appears:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitProperty waits until the exported item's property is as wanted, two
// seconds at most, and calls again meanwhile.
func awaitProperty(name string, wanted func(value string) bool, again func()) {
	conn, err := sessionBus()
	if err != nil {
		return
	}
	defer conn.Close()
	item := conn.Object(fmt.Sprintf("org.kde.StatusNotifierItem-%d-1", os.Getpid()), "/StatusNotifierItem")
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		again()
		v, err := item.GetProperty("org.kde.StatusNotifierItem." + name)
		if value, ok := v.Value().(string); err == nil && ok && wanted(value) {
			return
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

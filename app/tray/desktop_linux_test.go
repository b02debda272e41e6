package tray

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/apiserver"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// socketVar makes the test's binary the tray: the library keeps one icon per
// process.
const socketVar = "TRAY_TEST_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(socketVar); socket != "" {
		if err := Run(context.Background(), Options{Client: &client.Client{Socket: socket}, Hint: os.Stdout}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// bus starts a session bus of the test's own and returns its address.
func bus(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("SKIPPED: no dbus-daemon on this machine (apt-get install dbus)")
	}
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	address := "unix:path=" + filepath.Join(dir, "s")
	cmd := exec.Command("dbus-daemon", "--session", "--nofork", "--nopidfile", "--address="+address)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); os.RemoveAll(dir) })
	eventually(t, "the bus is there", func() bool { _, err := os.Stat(filepath.Join(dir, "s")); return err == nil })
	return address
}

// panel stands for the desktop's panel: it takes the registration, and reads
// and clicks the menu as a panel would.
type panel struct {
	t          *testing.T
	conn       *dbus.Conn
	registered chan dbus.Sender
	item       dbus.BusObject // the icon; menu is beside it
	menu       dbus.BusObject
}

// RegisterStatusNotifierItem is what the icon calls over D-Bus.
func (p *panel) RegisterStatusNotifierItem(sender dbus.Sender, _ string) *dbus.Error {
	p.registered <- sender
	return nil
}

func newPanel(t *testing.T, address string) *panel {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &panel{t: t, conn: conn, registered: make(chan dbus.Sender, 4)}
	if err := conn.Export(p, "/StatusNotifierWatcher", watcherName); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName(watcherName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	return p
}

// await waits for the icon to register.
func (p *panel) await() {
	p.t.Helper()
	select {
	case sender := <-p.registered:
		p.item = p.conn.Object(string(sender), "/StatusNotifierItem")
		p.menu = p.conn.Object(string(sender), "/StatusNotifierItem/menu")
	case <-time.After(10 * time.Second):
		p.t.Fatal("the icon does not register")
	}
}

// line is one visible item of the menu.
type line struct {
	id      int32
	label   string
	enabled bool
	checked bool
}

type layout struct {
	ID       int32
	Props    map[string]dbus.Variant
	Children []dbus.Variant
}

// lines reads the menu, submenus included.
func (p *panel) lines() (list []line) {
	p.t.Helper()
	var revision uint32
	var root layout
	if err := p.menu.Call("com.canonical.dbusmenu.GetLayout", 0, int32(0), int32(-1), []string{}).Store(&revision, &root); err != nil {
		p.t.Fatalf("read the menu: %v", err)
	}
	var walk func(layout)
	walk = func(l layout) {
		if hidden, ok := l.Props["visible"].Value().(bool); ok && !hidden {
			return
		}
		if label, ok := l.Props["label"].Value().(string); ok {
			enabled, _ := l.Props["enabled"].Value().(bool)
			list = append(list, line{l.ID, label, enabled, fmt.Sprint(l.Props["toggle-state"].Value()) == "1"})
		}
		for _, c := range l.Children {
			var child layout
			if err := dbus.Store([]any{c.Value()}, &child); err != nil {
				p.t.Fatalf("read an item: %v", err)
			}
			walk(child)
		}
	}
	walk(root)
	return list
}

// wait waits for a line that starts with label, and returns it.
func (p *panel) wait(label string) (found line) {
	p.t.Helper()
	eventually(p.t, "the menu has "+label, func() bool {
		for _, l := range p.lines() {
			if strings.HasPrefix(l.label, label) {
				found = l
				return true
			}
		}
		return false
	})
	return found
}

func (p *panel) click(l line) {
	p.t.Helper()
	if call := p.menu.Call("com.canonical.dbusmenu.Event", 0, l.id, "clicked", dbus.MakeVariant(""), uint32(0)); call.Err != nil {
		p.t.Fatal(call.Err)
	}
}

func (p *panel) property(name string) string {
	v, err := p.item.GetProperty("org.kde.StatusNotifierItem." + name)
	if err != nil {
		p.t.Fatal(err)
	}
	return fmt.Sprint(v.Value())
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to pass that %s", what)
		}
	}
}

// icon is the picture that goes with a tooltip, which is set after it.
func (p *panel) icon(tooltip string) string {
	p.t.Helper()
	eventually(p.t, "the tooltip says "+tooltip, func() bool { return strings.Contains(p.property("ToolTip"), "AtlanticProxy: "+tooltip) })
	return p.property("IconPixmap")
}

// service is a service with a state that outlives its restarts.
type service struct {
	apiserver.Inspect  // Upstreams only is used
	apiserver.Identity // not used
	mu                 sync.Mutex
	st                 api.Status
	choice             string
	changed            chan struct{} // closed by the next change
}

func (s *service) Status() api.Status { s.mu.Lock(); defer s.mu.Unlock(); return s.st }
func (s *service) Shutdown()          {}
func (s *service) Upstreams() api.Upstreams {
	s.mu.Lock()
	defer s.mu.Unlock()
	return api.Upstreams{Choice: s.choice, Upstreams: []api.Upstream{{Name: "direct", Scheme: "direct"}, {Name: "pa_ris", Scheme: "socks5", RTTms: 23}}}
}

func (s *service) SetPrefs(_ context.Context, p api.Prefs) (api.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.On != nil {
		s.st.State = map[bool]api.State{true: api.On, false: api.Off}[*p.On]
	}
	if p.Upstream != nil {
		s.choice, s.st.Upstream = *p.Upstream, api.Upstream{Name: *p.Upstream, RTTms: 23}
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return s.st, nil
}

func (s *service) Watch(ctx context.Context) <-chan api.Event {
	out := make(chan api.Event)
	go func() { // ends with ctx
		defer close(out)
		for {
			s.mu.Lock()
			changed := s.changed
			s.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			st := s.Status()
			select {
			case out <- api.Event{Type: "status", Status: &st}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// run serves s at socket until stop is called.
func (s *service) run(t *testing.T, socket string, peer localsock.Peer) (stop func()) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		apiserver.New(s, apiserver.Options{PeerOf: func(net.Conn) (localsock.Peer, error) { return peer, nil }}).Serve(ctx, ln)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// startTray runs the tray against a bus and a socket. output may be read once
// cmd.Wait has returned.
func startTray(t *testing.T, address, socket string) (cmd *exec.Cmd, output *bytes.Buffer) {
	t.Helper()
	cmd, output = exec.Command(os.Args[0]), &bytes.Buffer{}
	// godbus v5.2.4 writes a property in place while another goroutine sends it
	// (prop.SetMust against Get): -race sees that inside the library, November
	// 2026. Our own goroutines are raced in TestOncePerSecond and TestBusyService.
	cmd.Env = append(os.Environ(), socketVar+"="+socket, "DBUS_SESSION_BUS_ADDRESS="+address, "GORACE=exitcode=0 atexit_sleep_ms=0")
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd, output
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tray")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// TestDesktop is the life of the icon on a real bus: no service, service,
// switch, upstream, a restart of the service, quit.
func TestDesktop(t *testing.T) {
	t.Parallel()
	admin := localsock.Peer{Known: true, Admin: true}
	address, socket := bus(t), socketPath(t)
	p := newPanel(t, address)
	cmd, output := startTray(t, address, socket)
	p.await()

	if l := p.wait("Service not running"); l.enabled {
		t.Error("the headline can be clicked")
	}
	p.wait("start it: sudo atlantic service start")
	if l := p.wait("Turn on"); l.enabled {
		t.Error("the switch can be clicked without a service")
	}
	goneIcon := p.icon("service not running")

	s := &service{st: api.Status{State: api.Off, Protect: api.Protect{Effect: "traffic leaves directly"}, Upstream: api.Upstream{Name: "direct", Scheme: "direct"}}, choice: "auto", changed: make(chan struct{})}
	stop := s.run(t, socket, admin)
	p.wait("Off · traffic leaves directly")
	offIcon := p.icon("off")

	p.click(p.wait("Turn on"))
	p.wait("On · direct")
	if st := s.Status(); st.State != api.On {
		t.Errorf("a click on the switch led to %s", st.State)
	}
	p.wait("Quit (the service stays on)")
	if onIcon := p.icon("on · direct"); onIcon == offIcon || offIcon == goneIcon {
		t.Error("the icon does not tell the states apart")
	}

	p.click(p.wait("pa__ris")) // the underscore is not a mnemonic
	p.wait("On · pa__ris · 23 ms")
	eventually(t, "the choice is checked", func() bool { return p.wait("pa__ris").checked && !p.wait("Automatic").checked })

	stop()
	p.wait("Service not running")
	stop = s.run(t, socket, admin)
	p.wait("On · pa__ris · 23 ms")
	stop()
	p.wait("Service not running")
	s.run(t, socket, localsock.Peer{Known: true, UID: 1001})
	p.wait("To steer it, ") // with the service's hint
	if l := p.wait("Turn off"); l.enabled {
		t.Error("who may not steer can click the switch")
	}

	second, said := startTray(t, address, socket)
	if err := second.Wait(); err == nil || !strings.Contains(said.String(), "there already") {
		t.Errorf("a second tray: %v, %s", err, said)
	}

	p.click(p.wait("Quit"))
	if err := cmd.Wait(); err != nil {
		t.Errorf("the tray ended with %v\n%s", err, output)
	}
	if strings.Contains(output.String(), "systray error") {
		t.Errorf("it printed %s", output)
	}
}

// TestNoPanel: a desktop without tray icons gets a hint, and no failure.
func TestNoPanel(t *testing.T) {
	t.Parallel()
	cmd, output := startTray(t, bus(t), socketPath(t))
	if err := cmd.Wait(); err != nil || !strings.Contains(output.String(), "gnome-shell-extension-appindicator") {
		t.Errorf("%v: %s", err, output)
	}
}

// TestSessionEnds: the tray goes with its desktop session.
func TestSessionEnds(t *testing.T) {
	t.Parallel()
	address := bus(t)
	p := newPanel(t, address)
	cmd, _ := startTray(t, address, socketPath(t))
	p.await()
	p.wait("Service not running")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var pid uint32
	if err := p.conn.BusObject().Call("org.freedesktop.DBus.GetConnectionUnixProcessID", 0, "org.freedesktop.DBus").Store(&pid); err != nil {
		t.Fatal(err)
	}
	daemon, err := os.FindProcess(int(pid))
	if err != nil {
		t.Fatal(err)
	}
	daemon.Kill()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("it stays without a desktop")
	}
}

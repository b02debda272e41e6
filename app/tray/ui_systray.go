//go:build !darwin || cgo

package tray

import (
	"runtime"
	"strings"
	"sync"

	"fyne.io/systray"

	"github.com/atlanticproxy/atlanticproxy/assets"
)

// systrayUI is the ui of fyne.io/systray, which keeps one icon per process.
type systrayUI struct {
	click chan string
	built chan struct{} // closed when the first view is there
	done  chan struct{} // closed when run ends
	wg    sync.WaitGroup
	nodes []*node // owned by run, then by show
	last  View
	once  sync.Once

	mu sync.Mutex // guards node.id
}

// node is one item on the screen. Items are never removed, only hidden: the
// library could still deliver a click for one that is gone.
type node struct {
	item     *systray.MenuItem // nil for a separator
	id       string
	shown    Item
	children []*node
}

func newUI() (ui, error) {
	return &systrayUI{click: make(chan string, 8), built: make(chan struct{}), done: make(chan struct{})}, nil
}

func (u *systrayUI) clicks() <-chan string { return u.click }
func (u *systrayUI) quit()                 { u.once.Do(systray.Quit) }

func (u *systrayUI) run(first View) {
	systray.SetTitle("AtlanticProxy") // before Run: on Linux it becomes the icon's id
	systray.Run(func() {
		u.build(first)
		close(u.built)
	}, nil)
	close(u.done)
	u.wg.Wait()
}

func (u *systrayUI) build(v View) {
	for _, it := range v.Items {
		n := &node{}
		if it.Separator {
			systray.AddSeparator()
		} else {
			n.item = systray.AddMenuItem(label(it), "")
			u.adopt(n, it)
		}
		u.nodes = append(u.nodes, n)
	}
	u.face(v)
}

// show changes only what differs: every change is a message to the panel, and
// would make an open menu flicker.
func (u *systrayUI) show(v View) {
	select {
	case <-u.built:
	case <-u.done:
		return
	}
	for i, it := range v.Items {
		if u.nodes[i].item != nil {
			u.update(u.nodes[i], it)
		}
	}
	u.face(v)
}

// face sets the icon and its tooltip.
func (u *systrayUI) face(v View) {
	if v.Icon != u.last.Icon {
		if icon := trayIcon(v.Icon); icon != nil {
			setIcon(v.Icon, icon)
		}
	}
	if v.Tooltip != u.last.Tooltip {
		systray.SetTooltip(v.Tooltip)
		if runtime.GOOS == "linux" {
			systray.SetTitle(v.Tooltip) // what many panels show instead
		}
	}
	u.last = v
}

// adopt takes a new item into use: its clicks, its state, its submenu.
func (u *systrayUI) adopt(n *node, it Item) {
	n.shown = Item{Label: it.Label}
	u.wg.Go(func() {
		for {
			select {
			case <-n.item.ClickedCh:
				u.mu.Lock()
				id := n.id
				u.mu.Unlock()
				select {
				case u.click <- id:
				default:
				}
			case <-u.done:
				return
			}
		}
	})
	u.update(n, it)
}

func (u *systrayUI) update(n *node, it Item) {
	u.mu.Lock()
	n.id = it.ID
	u.mu.Unlock()
	was := n.shown
	n.shown = it
	if it.Hidden {
		n.shown.Label, n.shown.Disabled = was.Label, was.Disabled // not sent while hidden
		if !was.Hidden {
			n.item.Hide()
		}
		return
	}
	if was.Hidden {
		n.item.Show()
	}
	if it.Label != was.Label {
		n.item.SetTitle(label(it))
	}
	if it.Disabled != was.Disabled {
		if it.Disabled {
			n.item.Disable()
		} else {
			n.item.Enable()
		}
	}
	if it.Checked != was.Checked {
		if it.Checked {
			n.item.Check()
		} else {
			n.item.Uncheck()
		}
	}
	u.submenu(n, it.Items)
}

// submenu brings the children of n to items; spare ones are hidden.
func (u *systrayUI) submenu(n *node, items []Item) {
	for i, it := range items {
		if i < len(n.children) {
			u.update(n.children[i], it)
			continue
		}
		child := &node{}
		if it.Checkable {
			child.item = n.item.AddSubMenuItemCheckbox(label(it), "", false)
		} else {
			child.item = n.item.AddSubMenuItem(label(it), "")
		}
		n.children = append(n.children, child)
		u.adopt(child, it)
	}
	for _, spare := range n.children[min(len(items), len(n.children)):] {
		hidden := spare.shown
		hidden.Hidden = true
		u.update(spare, hidden)
	}
}

// label keeps the desktop from taking a character for a keyboard mnemonic.
func label(it Item) string {
	if runtime.GOOS == "windows" {
		return strings.ReplaceAll(it.Label, "&", "&&")
	}
	return strings.ReplaceAll(it.Label, "_", "__")
}

// trayIcon is the picture in the form that the system takes; nil if there is
// none of that name.
func trayIcon(name string) []byte {
	var data []byte
	if runtime.GOOS == "windows" {
		data, _ = assets.ICO(name)
	} else {
		data, _ = assets.Icon(name, "color", 48) // panels scale down
	}
	return data
}

func setIcon(name string, icon []byte) {
	if template, err := assets.Icon(name, "dark", 48); err == nil && runtime.GOOS == "darwin" {
		systray.SetTemplateIcon(template, icon)
		return
	}
	systray.SetIcon(icon)
}

package main

import (
	"compress/gzip"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/files"
)

//go:embed files scripts
var embedded embed.FS

// description is what a package manager shows; the first line is the synopsis.
const description = `proxy for the whole computer, as if it were a VPN
AtlanticProxy sends every app's traffic, TCP and UDP, IPv4 and IPv6, through
an upstream proxy (HTTP CONNECT, CONNECT over TLS or HTTP/2, SOCKS5) by a TUN
device. This package has the service, the command line, and an icon for the
panel. Members of the group atlantic may steer the service.`

// describe returns the whole package; tmp takes what must be a file for nfpm.
func describe(o options, format, arch, tmp string) (*nfpm.Info, error) {
	if err := os.CopyFS(tmp, embedded); err != nil {
		return nil, err
	}
	contents, err := contents(o, tmp)
	if err != nil {
		return nil, err
	}
	script := func(name string) string { return filepath.Join(tmp, "scripts", format+"-"+name) }
	info := &nfpm.Info{
		Name: "atlantic", Arch: arch, Platform: "linux",
		Version: packageVersion(o.version), VersionSchema: "none",
		Section: "net", Priority: "optional",
		Maintainer:      "AtlanticProxy authors <atlanticproxy@users.noreply.github.com>",
		Description:     description,
		Homepage:        "https://github.com/atlanticproxy/atlanticproxy",
		MTime:           o.mtime,
		DisableGlobbing: true,
		Overridables:    nfpm.Overridables{Contents: contents, Umask: 0o022},
	}
	switch format {
	case "deb":
		info.Depends = []string{"init-system-helpers", "passwd"}
		info.Recommends = []string{"ca-certificates"}
		info.Deb.Compression = "zstd"
		info.Scripts = nfpm.Scripts{PostInstall: script("postinst"), PreRemove: script("prerm"), PostRemove: script("postrm")}
	case "rpm":
		info.Release = "1"
		info.License = "not stated"
		info.Depends = []string{"/usr/sbin/groupadd"}
		info.RPM.Summary, _, _ = strings.Cut(description, "\n")
		info.RPM.Group = "Applications/Internet"
		info.RPM.BuildHost = "localhost" // not the builder's name
		info.RPM.Compression = "zstd"
		info.Scripts = nfpm.Scripts{PostInstall: script("post"), PreRemove: script("preun"), PostRemove: script("postun")}
	default:
		return nil, fmt.Errorf("no scripts for %s", format)
	}
	info = nfpm.WithDefaults(info)
	return info, nfpm.PrepareForPackager(info, format)
}

// contents lists the files of the package.
func contents(o options, tmp string) (files.Contents, error) {
	var list files.Contents
	add := func(src, dst string, mode os.FileMode) {
		list = append(list, &files.Content{Source: src, Destination: dst,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: o.mtime}})
	}
	own := func(name string) string { return filepath.Join(tmp, "files", name) }
	const doc = "/usr/share/doc/atlantic/"
	list = append(list, &files.Content{Destination: doc, Type: files.TypeDir, // rpm removes only what it owns
		FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: 0o755, MTime: o.mtime}})
	add(filepath.Join(o.bin, "atlantic"), "/usr/bin/atlantic", 0o755)
	add(filepath.Join(o.bin, "atlanticd"), "/usr/bin/atlanticd", 0o755)
	add(o.unit, "/lib/systemd/system/atlanticd.service", 0o644)
	add(own("atlantic-autostart.desktop"), "/etc/xdg/autostart/atlantic.desktop", 0o644)
	list[len(list)-1].Type = files.TypeConfigNoReplace
	add(own("atlantic.desktop"), "/usr/share/applications/atlantic.desktop", 0o644)
	add(own("atlantic.toml.example"), doc+"atlantic.toml.example", 0o644)
	add(own("copyright"), doc+"copyright", 0o644)
	zipped := map[string]string{
		o.changes:          doc + "changelog.gz",
		own("atlantic.1"):  "/usr/share/man/man1/atlantic.1.gz",
		own("atlanticd.8"): "/usr/share/man/man8/atlanticd.8.gz",
	}
	for src, dst := range zipped {
		gz := filepath.Join(tmp, filepath.Base(dst))
		if err := compress(src, gz); err != nil {
			return nil, err
		}
		add(gz, dst, 0o644)
	}
	icons, err := icons(o.icons)
	if err != nil {
		return nil, err
	}
	for src, dst := range icons {
		add(src, dst, 0o644)
	}
	return list, nil
}

// icons maps the icon files of dir to their places in the icon theme.
func icons(dir string) (map[string]string, error) {
	sized := regexp.MustCompile(`^app-color-([0-9]+)\.png$`)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the icons: %w", err)
	}
	icons := map[string]string{}
	for _, e := range entries {
		const theme = "/usr/share/icons/hicolor/"
		src := filepath.Join(dir, e.Name())
		if m := sized.FindStringSubmatch(e.Name()); m != nil {
			icons[src] = fmt.Sprintf(theme+"%[1]sx%[1]s/apps/atlantic.png", m[1])
		}
	}
	if len(icons) == 0 {
		return nil, fmt.Errorf("no app-color-SIZE.png in %s", dir)
	}
	return icons, nil
}

// compress writes src to dst by gzip, without name or time in it.
func compress(src, dst string) error {
	b, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	f, err := os.Create(dst)
	if err != nil {
		return err
	}
	zw, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return err
	}
	_, err = zw.Write(b)
	return errors.Join(err, zw.Close(), f.Close())
}

// packageVersion turns what git describe says into a version that dpkg and rpm
// both order rightly: a release is itself, commits after it are later, and a
// tree without a release is before all.
//
//	v1.2.3              1.2.3
//	v1.2.3-rc.1         1.2.3~rc.1
//	v1.2.3-4-g0123abc   1.2.3+4.g0123abc
//	v0.0.0-304-g0123abc 0.0.0+304.g0123abc, as scripts/version has it before the first release
//	0123abc-dirty       0.0.0+0123abc.dirty
func packageVersion(described string) string {
	tidy := func(s string) string {
		return regexp.MustCompile(`[^A-Za-z0-9.]+`).ReplaceAllString(strings.Trim(s, "-"), ".")
	}
	m := regexp.MustCompile(`^v?([0-9]+(?:\.[0-9]+)+)(-(?:alpha|beta|rc)[.0-9]*)?(-.*)?$`).FindStringSubmatch(described)
	if m == nil {
		return "0.0.0+" + tidy(described)
	}
	version := m[1]
	if m[2] != "" {
		version += "~" + tidy(m[2])
	}
	if m[3] != "" {
		version += "+" + tidy(m[3])
	}
	return version
}

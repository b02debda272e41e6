// Command installer builds the Linux packages, a .deb and an .rpm for each
// architecture.
//
//	bin/atlantic, bin/atlanticd ─┐
//	files/ scripts/ (embedded) ──┼─► contents ─► nfpm ─► dist/atlantic_1.2.3_amd64.deb, …rpm
//	assets/{icons,service}, CHANGELOG.md ──┘
//
//	go run . -version 1.2.3 -bin ../bin -out ../dist
//
// It is a module of its own because nfpm brings many modules that the product
// must not depend on.
package main

import (
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // packager "deb"
	_ "github.com/goreleaser/nfpm/v2/rpm" // packager "rpm"
)

// options say what to build from what.
type options struct {
	version string // as git describe gives it
	bin     string // directory of atlantic and atlanticd
	icons   string // directory of the icons, app-color-SIZE.png
	unit    string // the systemd unit
	changes string // the changelog
	out     string // directory for the packages
	formats string // comma-separated
	mtime   time.Time
}

func main() {
	o := options{mtime: time.Now().UTC().Truncate(time.Second)}
	flag.StringVar(&o.version, "version", "dev", "`version`, as git describe gives it")
	flag.StringVar(&o.bin, "bin", "../bin", "`directory` of the two binaries; their architecture is the package's")
	flag.StringVar(&o.icons, "icons", "../assets/icons", "`directory` of the icons")
	flag.StringVar(&o.unit, "unit", "../assets/service/atlanticd.service", "systemd unit `file`")
	flag.StringVar(&o.changes, "changes", "../CHANGELOG.md", "changelog `file`")
	flag.StringVar(&o.out, "out", "../dist", "`directory` for the packages")
	flag.StringVar(&o.formats, "formats", "deb,rpm", "comma-separated `list`")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "installer: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	if err := run(o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "installer:", err)
		os.Exit(1)
	}
}

// run builds the packages and prints their paths. SOURCE_DATE_EPOCH, if it is
// set, is the time of every file, so that builds are reproducible.
func run(o options, w io.Writer) error {
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		sec, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		o.mtime = time.Unix(sec, 0).UTC()
	}
	arch, err := architecture(filepath.Join(o.bin, "atlantic"), filepath.Join(o.bin, "atlanticd"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	for format := range strings.SplitSeq(o.formats, ",") {
		path, err := build(o, format, arch)
		if err != nil {
			return fmt.Errorf("build the %s: %w", format, err)
		}
		fmt.Fprintln(w, path)
	}
	return nil
}

// build writes one package and returns its path.
func build(o options, format, arch string) (path string, err error) {
	packager, err := nfpm.Get(format)
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp("", "atlantic-package-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	info, err := describe(o, format, arch, tmp)
	if err != nil {
		return "", err
	}
	path = filepath.Join(o.out, packager.ConventionalFileName(info))
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	err = errors.Join(packager.Package(info, f), f.Close())
	if err != nil {
		os.Remove(path)
		return "", err
	}
	return path, nil
}

// architecture returns the one that the binaries are built for, in Go's word.
// They must be static: then a package has no dependency on a C library.
func architecture(paths ...string) (arch string, err error) {
	names := map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}
	for _, p := range paths {
		f, err := elf.Open(p)
		if err != nil {
			return "", fmt.Errorf("read %s: %w (make build makes it)", p, err)
		}
		defer f.Close()
		name, ok := names[f.Machine]
		switch {
		case !ok:
			return "", fmt.Errorf("%s is built for %v; packages are for amd64 and arm64", p, f.Machine)
		case arch != "" && arch != name:
			return "", fmt.Errorf("%s is built for %s, the other binary for %s", p, name, arch)
		}
		if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
			return "", fmt.Errorf("%s is not static (it needs %v); build it with CGO_ENABLED=0", p, libs)
		}
		arch = name
	}
	return arch, nil
}

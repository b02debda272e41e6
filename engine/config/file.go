package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/platform/paths"
)

// Load reads the file at path, checks it and who could have written it, and
// resolves its secrets. A missing file is valid and yields Default. Errors
// about the content are of type *Error.
//
// The file must belong to root or this user and be writable by nobody else,
// and so must every directory above it (a sticky one such as /tmp apart).
func Load(path string) (*Config, error) {
	data, info, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return nil, err
	}
	c, src, err := parse(path, data)
	if err != nil {
		return nil, err
	}
	if err := c.resolve(src, info); err != nil {
		return nil, err
	}
	c.Path, c.Text = path, data
	return c, nil
}

// readConfig returns the content if the file may be trusted.
func readConfig(path string) ([]byte, fs.FileInfo, error) {
	link, err := os.Lstat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	real := path
	if link.Mode()&fs.ModeSymlink != 0 {
		if real, err = filepath.EvalSymlinks(path); err != nil {
			return nil, nil, fmt.Errorf("read configuration: %s leads nowhere: %v", path, err)
		}
	}
	data, info, err := readFile(real, maxFileBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	if err := checkOwner(real, info); err != nil {
		return nil, nil, err
	}
	for _, p := range []string{path, real} {
		if err := checkParents(p); err != nil {
			return nil, nil, err
		}
	}
	return data, info, nil
}

// readFile reads a regular file of at most limit bytes; it does not hang on
// FIFOs and devices.
func readFile(path string, limit int64) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("larger than %d KiB", limit>>10)}
	}
	return data, info, err
}

// withoutPath is an error of the file system without the file's name.
func withoutPath(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// checkParents refuses a path in which others could put another file.
func checkParents(path string) error {
	err := paths.CheckDir(filepath.Dir(path))
	if bad := (*paths.DirError)(nil); errors.As(err, &bad) {
		return fmt.Errorf("%s is refused: the directory %w (hint: %s)", path, err, bad.Hint)
	} else if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	return nil
}

// secret is a text that nobody else may read, and where it stands.
type secret struct {
	what  string // `upstream "office": a password`
	path  string // of the key, for errors
	value *proxy.Secret
	from  string // where value is read from; "" if it stands in the file
}

// hint is what to do about a file that others may read.
func (s secret) hint(file string) string {
	if strings.HasSuffix(s.path, ".password") {
		return "chmod 600 " + file + `, or password = "file:/path"`
	}
	return "chmod 600 " + file
}

// secrets lists what is secret and set.
func (c *Config) secrets() (out []secret) {
	add := func(what, path string, value *proxy.Secret, from string) {
		if *value != "" || from != "" {
			out = append(out, secret{what, path, value, from})
		}
	}
	for i := range c.Upstreams {
		u := &c.Upstreams[i]
		add(fmt.Sprintf("upstream %q: a password", u.Name), fmt.Sprintf("upstream[%d].password", i), &u.Password, u.PasswordFrom)
	}
	for i := range c.Providers {
		p := &c.Providers[i]
		add(fmt.Sprintf("provider %q: a password", p.Name), fmt.Sprintf("provider[%d].password", i), &p.Password, p.PasswordFrom)
		if listSecret(p.URL.Reveal()) {
			add(fmt.Sprintf("provider %q: a list's address, which may hold a token,", p.Name), fmt.Sprintf("provider[%d].url", i), &p.URL, "")
		}
	}
	return out
}

// open returns an error if something secret stands in a file that others may read.
func (c *Config) open(src *source, mode fs.FileMode) error {
	for _, s := range c.secrets() {
		if s.from == "" {
			return src.fail(s.path, s.hint(src.name), "%s stands in a file that others may read (mode %04o)", s.what, mode)
		}
	}
	return nil
}

// resolve reads secrets and checks what the file alone cannot tell.
func (c *Config) resolve(src *source, info fs.FileInfo) error {
	if readableByOthers(info) {
		if err := c.open(src, info.Mode().Perm()); err != nil {
			return err
		}
	}
	for _, s := range c.secrets() {
		if s.from == "" {
			continue
		}
		var err error
		if *s.value, err = readSecret(s.from); err != nil {
			return src.fail(s.path, `"file:/path" of a file that only you can read, or "env:NAME" of a variable of the service`, "%s cannot be read: %v", s.what, err)
		}
	}
	return c.build(src)
}

// build makes what the service will make of the configuration, and so refuses
// what it could not start with.
func (c *Config) build(src *source) error {
	for i, u := range c.Upstreams {
		if _, err := u.Spec(); err != nil {
			return src.failUpstream(i, u, err)
		}
	}
	for i, p := range c.Providers {
		if p.Kind == "list" {
			continue
		}
		if _, err := p.Account(); err != nil {
			return src.failProvider(i, p, err)
		}
	}
	return nil
}

// WriteFileAtomic replaces the file at path by one with data and mode: after
// a crash at any moment there is the old content or the new, whole. It keeps
// the owner of the file it replaces where it may.
func WriteFileAtomic(path string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("save %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if old, statErr := os.Stat(path); statErr == nil {
		keepOwner(f, old)
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

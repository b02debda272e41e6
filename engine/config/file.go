package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Load reads the file at path, checks it and who could have written it, and
// resolves its secrets. A missing file is valid and yields Default. Errors
// about the content are of type *Error.
//
// The file must belong to root or this user and be writable by nobody else,
// and no directory above it may be world-writable (without the sticky bit).
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
	c.Path = path
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
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d KiB", path, limit>>10)
	}
	return data, info, err
}

// checkParents refuses a path in which others could put another file.
func checkParents(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("check %s: %w", path, err)
		}
		if worldWritable(info) {
			return fmt.Errorf("%s is refused: everybody may write in %s (hint: chmod o-w %s)", path, dir, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// placed is a secret, or a file's path, and where it stands.
type placed struct {
	what   string // `upstream "office"`
	path   string // of the key, for errors
	secret *Secret
	file   string
}

// secrets lists the passwords, set or not.
func (c *Config) secrets() (out []placed) {
	for i := range c.Upstreams {
		u := &c.Upstreams[i]
		out = append(out, placed{fmt.Sprintf("upstream %q", u.Name), fmt.Sprintf("upstream[%d].password", i), &u.Password, ""})
	}
	for i := range c.Providers {
		p := &c.Providers[i]
		out = append(out, placed{fmt.Sprintf("provider %q", p.Name), fmt.Sprintf("provider[%d].password", i), &p.Password, ""})
	}
	return out
}

// files lists the other files that the configuration names.
func (c *Config) files() (out []placed) {
	for i, u := range c.Upstreams {
		out = append(out, placed{fmt.Sprintf("upstream %q: ca", u.Name), fmt.Sprintf("upstream[%d].ca", i), nil, u.CA})
	}
	for i, p := range c.Providers {
		out = append(out, placed{fmt.Sprintf("provider %q: ca", p.Name), fmt.Sprintf("provider[%d].ca", i), nil, p.CA},
			placed{fmt.Sprintf("provider %q: template", p.Name), fmt.Sprintf("provider[%d].template", i), nil, p.Template})
	}
	return out
}

// resolve reads secrets and checks what the file alone cannot tell.
func (c *Config) resolve(src *source, info fs.FileInfo) error {
	for _, s := range c.secrets() {
		if s.secret.Inline() && readableByOthers(info) {
			return src.fail(s.path, fmt.Sprintf("chmod 600 %s, or use password = \"file:/path\"", src.name),
				"%s: a password stands in a file that others may read (mode %04o)", s.what, info.Mode().Perm())
		}
		var err error
		if *s.secret, err = s.secret.resolve(); err != nil {
			return src.fail(s.path, `"file:/path" of a file only you can read, or "env:NAME"`, "%s: password: %v", s.what, err)
		}
	}
	for _, f := range c.files() {
		if f.file == "" {
			continue
		}
		if _, _, err := readFile(f.file, maxFileBytes); err != nil {
			return src.fail(f.path, "a file that the service can read", "%s: %v", f.what, err)
		}
	}
	return c.checkAccounts(src)
}

// checkAccounts refuses what a vendor does not take.
func (c *Config) checkAccounts(src *source) error {
	for i, p := range c.Providers {
		if p.Kind == "list" {
			continue
		}
		if p.Password.value == "" {
			p.Password.value = p.Password.ref // not read yet; it must only be there
		}
		if _, err := p.Account(); err != nil {
			return src.fail(fmt.Sprintf("provider[%d]", i), "", "provider %q: %v", p.Name, err)
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

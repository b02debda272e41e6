package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Set writes one value into the file at path, which is created if missing
// (mode 0600), and so is its directory (0755). Comments, order and the file's mode stay; the result is checked
// whole before anything is written. key is "section.key",
// "upstream.NAME.key" or "provider.NAME.key"; value is plain: 1400, true, fake-ip, or for a list
// words separated by commas.
func Set(path, key, value string) error {
	parts := strings.Split(key, ".")
	if len(parts) < 2 || parts[0] == "rule" || parts[0] == "group" || len(parts) != 2+btoi(parts[0] == "upstream" || parts[0] == "provider") {
		return errors.New("there is no such key to set: keys are like tun.mtu or upstream.NAME.url (rules and groups are edited in the file)")
	}
	name := parts[len(parts)-1]
	if err := checkKey(parts[0], name); err != nil {
		return err
	}
	text, err := literal(parts[0]+"."+name, value)
	if err != nil {
		return err
	}
	if link, err := filepath.EvalSymlinks(path); err == nil {
		path = link
	}
	mode := fs.FileMode(0o600)
	data, info, err := readConfig(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		mode = info.Mode().Perm()
	}
	edited, err := edit(path, data, parts, text)
	if err != nil {
		return err
	}
	c, src, err := parse(path, edited)
	if err == nil {
		err = c.build(src)
	}
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	if mode&0o077 != 0 {
		if err := c.open(src, mode); err != nil {
			return fmt.Errorf("nothing was changed: %w", err)
		}
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make the configuration's directory: %w", err)
		}
	}
	return WriteFileAtomic(path, edited, mode)
}

// edit returns data with the value put in.
func edit(name string, data []byte, parts []string, text string) ([]byte, error) {
	c, src, err := parse(name, data)
	if err != nil {
		return nil, fmt.Errorf("nothing was changed, the file is wrong already: %w", err)
	}
	data = src.data
	table, key := parts[0], parts[len(parts)-1]
	i := 0
	switch table {
	case "upstream":
		i = slices.IndexFunc(c.Upstreams, func(u Upstream) bool { return u.Name == parts[1] })
		table = fmt.Sprintf("upstream[%d]", i)
	case "provider":
		i = slices.IndexFunc(c.Providers, func(p Provider) bool { return p.Name == parts[1] })
		table = fmt.Sprintf("provider[%d]", i)
	}
	if i < 0 {
		return nil, fmt.Errorf("there is no %s of that name", parts[0])
	}
	if sp, ok := src.keys[table+"."+key]; ok {
		return slices.Concat(data[:sp.valueStart], []byte(text), data[sp.valueEnd:]), nil
	}
	line := key + " = " + text + "\n"
	if end, ok := src.ends[table]; ok {
		if end > 0 && data[end-1] != '\n' {
			line = "\n" + line
		}
		return slices.Concat(data[:end], []byte(line), data[end:]), nil
	}
	if strings.Contains(table, "[") {
		return nil, fmt.Errorf("%s %q is not written as [[%[1]s]]: edit the file by hand", parts[0], parts[1])
	}
	head := "[" + table + "]\n"
	if len(data) > 0 {
		head = "\n" + head
		if data[len(data)-1] != '\n' {
			head = "\n" + head
		}
	}
	return slices.Concat(data, []byte(head+line)), nil
}

// literal writes a plain value as TOML, by what the key takes.
func literal(key, value string) (string, error) {
	switch key {
	case "tun.enabled", "protect.lan", "provider.pinned":
		if b, err := strconv.ParseBool(value); err == nil {
			return strconv.FormatBool(b), nil
		}
		return "", fmt.Errorf("%s is true or false", key)
	case "tun.mtu", "upstream.pool", "provider.pool", "provider.port":
		if n, err := strconv.Atoi(value); err == nil {
			return strconv.Itoa(n), nil
		}
	case "dns.servers":
		if strings.HasPrefix(strings.TrimSpace(value), "[") {
			return value, nil
		}
		var list []string
		for s := range strings.SplitSeq(value, ",") {
			list = append(list, strings.TrimSpace(s))
		}
		return quoteList(list), nil
	}
	return Quote(strings.ToValidUTF8(value, "?")), nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

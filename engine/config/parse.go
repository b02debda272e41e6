package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// raw is the file as TOML sees it; validate turns it into a Config.
type raw struct {
	TUN struct {
		Enabled bool   `toml:"enabled"`
		Name    string `toml:"name"`
		MTU     any    `toml:"mtu"` // "auto" or bytes
		Stack   string `toml:"stack"`
	} `toml:"tun"`
	Listen struct {
		Proxy string `toml:"proxy"`
	} `toml:"listen"`
	DNS struct {
		Mode      string   `toml:"mode"`
		Servers   []string `toml:"servers"`
		FakeRange string   `toml:"fake_range"`
	} `toml:"dns"`
	Protect struct {
		KillSwitch string `toml:"kill_switch"`
		UDP        string `toml:"udp"`
		LAN        bool   `toml:"lan"`
	} `toml:"protect"`
	Upstream []rawUpstream `toml:"upstream"`
	Provider []rawProvider `toml:"provider"`
	Group    []rawGroup    `toml:"group"`
	Rule     []rawRule     `toml:"rule"`
}

type rawUpstream struct {
	Name     string  `toml:"name"`
	URL      string  `toml:"url"`
	SNI      string  `toml:"sni"`
	CA       string  `toml:"ca"`
	Username *string `toml:"username"`
	Password *string `toml:"password"`

	Pool      *int    `toml:"pool"`
	EarlyData *string `toml:"early_data"`
}

type rawRule struct {
	Domain       []string `toml:"domain"`
	DomainSuffix []string `toml:"domain_suffix"`
	CIDR         []string `toml:"cidr"`
	Port         []any    `toml:"port"` // 443 or "8000-9000"
	Process      []string `toml:"process"`
	Via          string   `toml:"via"`
}

// Parse reads and checks data; name stands for the file in errors, which are
// of type *Error. It is pure: secrets by reference stay unresolved and the
// file's permissions are not looked at. Path is left empty.
func Parse(name string, data []byte) (*Config, error) {
	c, _, err := parse(name, data)
	return c, err
}

func parse(name string, data []byte) (*Config, *source, error) {
	if len(data) > maxFileBytes {
		return nil, nil, &Error{File: name, Msg: "larger than 1 MiB", Hint: "a configuration is a few kilobytes: is this the right file?"}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	src := newSource(name, data)
	if err := src.checkDepth(); err != nil {
		return nil, src, err
	}
	if err := src.index(); err != nil {
		return nil, src, err
	}
	r, err := decode(src)
	if err != nil {
		return nil, src, err
	}
	c, err := validate(src, r)
	return c, src, err
}

// decode fills a raw that holds the defaults.
func decode(src *source) (*raw, error) {
	d := Default()
	r := &raw{}
	r.TUN.Enabled, r.TUN.Name, r.TUN.Stack, r.TUN.MTU = d.TUN.Enabled, d.TUN.Name, d.TUN.Stack, "auto"
	r.Listen.Proxy = d.Listen.Proxy
	r.DNS.Mode, r.DNS.FakeRange = d.DNS.Mode, d.DNS.FakeRange.String()
	r.Protect.KillSwitch, r.Protect.UDP, r.Protect.LAN = d.Protect.KillSwitch, d.Protect.UDP, d.Protect.LAN

	err := toml.NewDecoder(bytes.NewReader(src.data)).DisallowUnknownFields().Decode(r)
	var missing *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case err == nil:
	case errors.As(err, &missing) && len(missing.Errors) > 0:
		e := missing.Errors[0]
		line, column := e.Position()
		msg, hint := unknownKey(e.Key())
		return nil, src.failLine(line, column, msg, hint)
	case errors.As(err, &bad):
		line, column := bad.Position()
		msg, hint := plainDecodeError(bad.Error())
		return nil, src.failLine(line, column, msg, hint)
	default:
		return nil, &Error{File: src.name, Msg: "the file is not TOML that can be read", Hint: "see https://toml.io"}
	}
	if r.DNS.Servers == nil {
		r.DNS.Servers = d.DNS.Servers
	}
	return r, nil
}

// decodeMismatch is how go-toml reports a value of the wrong type.
var decodeMismatch = regexp.MustCompile(`^toml: cannot (?:decode|store) (?:TOML )?(?:a |an )?(.*?) (?:into|in) .*?(\S+)$`)

// plainDecodeError says what the decoder found in the user's terms.
func plainDecodeError(text string) (msg, hint string) {
	m := decodeMismatch.FindStringSubmatch(text)
	switch {
	case m == nil && strings.Contains(text, "strconv"): // whose error quotes the value
		return "the value is not one of TOML", ""
	case m == nil:
		return strings.TrimPrefix(text, "toml: "), ""
	}
	want := map[string]string{
		"bool": "true or false", "string": "a string in quotes", "[]string": `a list of strings: ["…", "…"]`,
		"[]interface": "a list", "int": "a number", "[]int": "a list of numbers",
	}[m[2]]
	if want == "" {
		return fmt.Sprintf("%s is not what this key takes", m[1]), ""
	}
	return fmt.Sprintf("%s where %s is wanted", m[1], want), ""
}

package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// maxSecretBytes bounds a file that a secret is read from.
const maxSecretBytes = 4 << 10

// parseSecret tells references from passwords, without reading anything.
func parseSecret(text string) (pass proxy.Secret, from string, err error) {
	switch {
	case strings.HasPrefix(text, "file:"):
		if !filepath.IsAbs(text[len("file:"):]) {
			return "", "", errors.New(`password needs an absolute path after "file:"`)
		}
		return "", text, nil
	case strings.HasPrefix(text, "env:"):
		if name := text[len("env:"):]; name == "" || strings.ContainsAny(name, "=\x00 ") {
			return "", "", errors.New(`password needs the name of a variable after "env:"`)
		}
		return "", text, nil
	}
	return proxy.Secret(text), "", nil
}

// readSecret reads the password that a reference points to, as editors and shells
// write it: without a byte order mark and the ends of lines behind it. Errors do
// not quote the reference, which may be a password in the wrong place.
func readSecret(from string) (proxy.Secret, error) {
	var data []byte
	switch {
	case strings.HasPrefix(from, "file:"):
		path := from[len("file:"):]
		text, info, err := readFile(path, maxSecretBytes)
		if err != nil {
			return "", withoutPath(err)
		}
		if err := checkSecretFile(path, info); err != nil {
			return "", err
		}
		data = text
	case strings.HasPrefix(from, "env:"):
		value, ok := os.LookupEnv(from[len("env:"):])
		if !ok {
			return "", errors.New("the service's environment has no such variable")
		}
		data = []byte(value)
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return "", errors.New("it is in UTF-16: save it as UTF-8")
	}
	data = bytes.TrimRight(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), "\r\n")
	if len(data) == 0 {
		return "", errors.New("it is empty")
	}
	return proxy.Secret(data), nil
}

// shownSecret is a password as the configuration shows it.
func shownSecret(pass proxy.Secret, from string) string {
	if from == "" && pass != "" {
		return "redacted"
	}
	return from
}

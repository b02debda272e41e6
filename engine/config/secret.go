package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// maxSecretBytes bounds a file that a secret is read from.
const maxSecretBytes = 4 << 10

// Secret is a password, or where to find it. It never prints its value.
type Secret struct {
	value string
	ref   string // "file:/path" or "env:NAME"; "" for an inline value
}

// Reveal returns the value. It is empty for a reference that Parse has read
// but Load has not resolved.
func (s Secret) Reveal() string { return s.value }

// Inline says that the value stands in the configuration file itself.
func (s Secret) Inline() bool { return s.value != "" && s.ref == "" }

// IsZero says that there is no secret at all.
func (s Secret) IsZero() bool { return s == Secret{} }

// String is the reference, "redacted" for an inline value, or "".
func (s Secret) String() string {
	if s.ref == "" && s.value != "" {
		return "redacted"
	}
	return s.ref
}

// Format redacts whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue redacts.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText redacts.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// parseSecret tells references from inline values, without reading anything.
func parseSecret(text string) (Secret, error) {
	switch {
	case strings.HasPrefix(text, "file:"):
		if !filepath.IsAbs(text[len("file:"):]) {
			return Secret{}, errors.New(`needs an absolute path after "file:"`)
		}
		return Secret{ref: text}, nil
	case strings.HasPrefix(text, "env:"):
		if name := text[len("env:"):]; name == "" || strings.ContainsAny(name, "=\x00 ") {
			return Secret{}, errors.New(`needs the name of a variable after "env:"`)
		}
		return Secret{ref: text}, nil
	}
	return Secret{value: text}, nil
}

// resolve reads the value that a reference points to.
func (s Secret) resolve() (Secret, error) {
	switch {
	case strings.HasPrefix(s.ref, "file:"):
		path := s.ref[len("file:"):]
		data, info, err := readFile(path, maxSecretBytes)
		if err != nil {
			return s, err
		}
		if err := checkSecretFile(path, info); err != nil {
			return s, err
		}
		s.value = strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	case strings.HasPrefix(s.ref, "env:"):
		value, ok := os.LookupEnv(s.ref[len("env:"):])
		if !ok {
			return s, fmt.Errorf("the environment has no variable %s", s.ref[len("env:"):])
		}
		s.value = value
	default:
		return s, nil
	}
	if s.value == "" {
		return s, fmt.Errorf("%s is empty", s.ref)
	}
	return s, nil
}

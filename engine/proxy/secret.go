package proxy

import (
	"fmt"
	"log/slog"
)

// Secret is a password, or a text that holds one. Nothing prints it by accident:
// every fmt verb, slog and the text and JSON encoders give "[redacted]" ("" when
// empty).
type Secret string

// Reveal is the secret itself, for the wire.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[redacted]"
}

// Format covers all verbs: String alone would leave %d and %#v open.
func (s Secret) Format(f fmt.State, _ rune)   { fmt.Fprint(f, s.String()) }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(s.String()) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

package resolve

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
)

// avoidFor is how long a provider is not asked again for a host that it
// refuses to carry.
const avoidFor = time.Hour

// Retry says what to do with a flow that the provider has refused.
type Retry uint8

const (
	NoRetry         Retry = iota
	RetrySame             // once more with the same endpoint
	RetryNewSession       // Report, then Pick again: the key has a new identity by then
	RetryOther            // Report, then Next; if that has none, Pick once more
)

// Reaction is what to do about a provider's answer. Retry is for one more
// attempt, not for many; the flow's bytes have not reached the target.
type Reaction struct {
	Retry   Retry
	Outcome Outcome       // what to Report
	Stop    bool          // the account is unusable until its owner acts: tell them
	Avoid   time.Duration // do not ask this provider for this host for so long; 0: it may be asked
	Message string        // for people: what the code means, and the vendor's own words
	Hint    string        // what the user can do; may be ""
}

// errorRule is one [[errors.map]].
type errorRule struct {
	Status   []int  `toml:"status"`   // HTTP, or below 100 a SOCKS5 reply
	Contains string `toml:"contains"` // in the vendor's words, in small letters; "": whatever they are
	Action   string `toml:"action"`
	Meaning  string `toml:"meaning"`
	Hint     string `toml:"hint"`
}

// reactionTo is what the actions of provider files mean.
func reactionTo(action string) (Reaction, bool) {
	switch action {
	case "stop": // the account or its parameters: no attempt will succeed
		return Reaction{Stop: true, Outcome: Outcome{Kind: Auth}}, true
	case "parameter": // likewise, unless the account has worked: then it was this target
		return Reaction{Stop: true, Outcome: Outcome{Kind: Auth}}, true
	case "avoid": // the provider does not carry this host
		return Reaction{Avoid: avoidFor, Outcome: Outcome{Kind: Target}}, true
	case "slow-down": // too many connections
		return Reaction{Retry: RetryOther, Outcome: Outcome{Kind: RateLimited}}, true
	case "new-session": // the exit is gone
		return Reaction{Retry: RetryNewSession, Outcome: Outcome{Kind: SessionEnded}}, true
	case "other": // no exit found, or target unreachable from this one
		return Reaction{Retry: RetryOther, Outcome: Outcome{Kind: NoExit}}, true
	case "slow": // the exit does not answer
		return Reaction{Retry: RetryOther, Outcome: Outcome{Kind: Timeout}}, true
	case "retry": // the provider's own trouble
		return Reaction{Retry: RetrySame, Outcome: Outcome{Kind: NoExit}}, true
	case "target": // the target is down
		return Reaction{Outcome: Outcome{Kind: Target}}, true
	}
	return Reaction{}, false
}

func (t *Template) checkErrors(*rawTemplate) error {
	for _, e := range t.errors {
		if _, ok := reactionTo(e.Action); !ok {
			return fmt.Errorf("errors: action %q is unknown", e.Action)
		}
		if len(e.Status) == 0 || e.Meaning == "" {
			return fmt.Errorf("errors: action %q needs status and meaning", e.Action)
		}
		if e.Contains != strings.ToLower(e.Contains) {
			return fmt.Errorf("errors: contains %q: write it in small letters", e.Contains)
		}
		for _, s := range e.Status {
			if s < 1 || s > 999 || s == 200 {
				return fmt.Errorf("errors: status %d", s)
			}
		}
	}
	return nil
}

// plainErrors is what the answers of an ordinary proxy mean.
var plainErrors = [...]struct {
	status  int
	action  string
	meaning string
}{
	{401, "stop", "the proxy wants other credentials"},
	{403, "target", "the proxy's rules forbid this target"},
	{407, "stop", "the proxy does not accept the credentials"},
	{429, "slow-down", "too many connections"},
}

// React says what to do about an answer other than success. status is HTTP's,
// or below 100 a SOCKS5 reply (RFC 1928 section 6); header gives a header of
// the answer and may be nil. It changes nothing: Report the Outcome.
func (r *Resolver) React(e *Endpoint, status int, header func(string) string) Reaction {
	if e == nil || e.m == nil || e.m.account == nil {
		return (*Template)(nil).react(status, header, false)
	}
	return e.m.account.Template.react(status, header, e.m.proven.Load())
}

// react is React; proven says that the account has worked.
func (t *Template) react(status int, header func(string) string, proven bool) Reaction {
	words := t.words(header)
	if t != nil {
		low := strings.ToLower(words)
		for _, e := range t.errors {
			if slices.Contains(e.Status, status) && strings.Contains(low, e.Contains) {
				rx, _ := reactionTo(e.Action)
				if e.Action == "parameter" && proven {
					rx = Reaction{Outcome: Outcome{Kind: Target}}
				}
				return rx.explain(status, e.Meaning, words, e.Hint)
			}
		}
	}
	for _, e := range plainErrors {
		if e.status == status {
			rx, _ := reactionTo(e.action)
			return rx.explain(status, e.meaning, words, "")
		}
	}
	// Whatever else a proxy says, it has said it: the target's fault.
	return Reaction{Outcome: Outcome{Kind: Target}}.explain(status, "the proxy could not reach the target", words, "")
}

// words are what the vendor's headers say, bounded and printable.
func (t *Template) words(header func(string) string) string {
	if t == nil || header == nil {
		return ""
	}
	var all []string
	for _, h := range t.headers {
		if v := clip(header(h), 200); v != "" {
			all = append(all, v)
		}
	}
	return strings.Join(all, " ")
}

func (rx Reaction) explain(status int, meaning, words, hint string) Reaction {
	rx.Message = fmt.Sprintf("%s (%d)", meaning, status)
	if words != "" {
		rx.Message += ": " + words
	}
	rx.Hint = hint
	rx.Outcome.Status, rx.Outcome.Text = status, rx.Message
	return rx
}

// clip bounds text from outside and drops what could disturb a terminal or a
// log line.
func clip(s string, max int) string {
	if len(s) > 4*max {
		s = s[:4*max]
	}
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > max {
		s = strings.ToValidUTF8(s[:max], "") + "…"
	}
	return strings.TrimSpace(s)
}

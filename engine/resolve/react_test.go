package resolve

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestReactions(t *testing.T) {
	for _, c := range []struct {
		kind   string
		status int
		header string
		retry  Retry
		kindIs OutcomeKind
		stop   bool
		avoid  time.Duration
		says   string
	}{
		{"oxylabs", 400, "", NoRetry, Auth, true, 0, "parameter"},
		{"oxylabs", 403, "Access denied: restricted target.", NoRetry, Target, false, time.Hour, "restricted target"},
		{"oxylabs", 407, "Access denied: traffic limit reached.", NoRetry, Auth, true, 0, "used up"},
		{"oxylabs", 407, "Access denied: user authentication failed.", NoRetry, Auth, true, 0, "does not accept the credentials"},
		{"oxylabs", 429, "", RetryOther, RateLimited, false, 0, "too many"},
		{"oxylabs", 500, "", RetrySame, NoExit, false, 0, "internal"},
		{"oxylabs", 502, "", RetryNewSession, SessionEnded, false, 0, "gone"},
		{"oxylabs", 503, "", RetryOther, NoExit, false, 0, "target"},
		{"oxylabs", 504, "", RetryOther, Timeout, false, 0, "in time"},
		{"oxylabs", 522, "", RetryOther, Timeout, false, 0, "in time"},
		{"oxylabs", 525, "", RetryOther, NoExit, false, 0, "location"},
		{"brightdata", 402, "", NoRetry, Target, false, time.Hour, "access mode"},
		{"iproyal", 402, "", NoRetry, Auth, true, 0, "used up"},
		{"netnut", 490, "", RetryOther, NoExit, false, 0, "access point"},
		{"netnut", 502, "", RetryNewSession, SessionEnded, false, 0, "gone"},
		{"decodo", 407, "", NoRetry, Auth, true, 0, "credentials"},
		{"decodo", 418, "", NoRetry, Target, false, 0, "(418)"},
		{"", 407, "", NoRetry, Auth, true, 0, "credentials"},
		{"", 403, "", NoRetry, Target, false, 0, "rules"},
		{"", 502, "", NoRetry, Target, false, 0, "target"},
		{"", 5, "", NoRetry, Target, false, 0, "target"},
	} {
		var r *Resolver
		if c.kind == "" {
			r = group(t, Failover, 1)
		} else {
			r = withAccount(t, &Account{Name: "p", Template: provider(t, c.kind), Username: "bob", Password: "x", Vars: zone(c.kind)}, nil)
		}
		e := mustPick(t, r, Key{})
		h := http.Header{}
		if c.header != "" {
			h.Set("X-Error-Description", c.header)
		}
		rx := r.React(e, c.status, h.Get)
		if rx.Retry != c.retry || rx.Outcome.Kind != c.kindIs || rx.Stop != c.stop || rx.Avoid != c.avoid || !strings.Contains(rx.Message, c.says) ||
			!strings.Contains(rx.Message, c.header) || rx.Outcome.Status != c.status || rx.Outcome.Text != rx.Message {
			t.Errorf("%s %d %q: %+v", c.kind, c.status, c.header, rx)
		}
		if got := r.React(e, c.status, nil); got.Outcome.Kind != c.kindIs {
			t.Errorf("%s %d without headers: %+v", c.kind, c.status, got)
		}
	}
}

func zone(kind string) map[string]string {
	if kind == "brightdata" {
		return map[string]string{"zone": "z"}
	}
	return nil
}

// A page must not be able to stop the account by what it asks for.
func TestABadRequestDoesNotStopAnAccountThatWorks(t *testing.T) {
	r := withAccount(t, oxylabs(t, "sticky"), nil)
	e := mustPick(t, r, Key{})
	report(r, e, Outcome{Kind: Success})
	if rx := r.React(e, 400, nil); rx.Stop || rx.Outcome.Kind != Target {
		t.Errorf("%+v", rx)
	}
}

func TestVendorsWordsAreBounded(t *testing.T) {
	r := withAccount(t, oxylabs(t, "sticky"), nil)
	rx := r.React(mustPick(t, r, Key{}), 407, func(string) string { return "\x1b[31m" + strings.Repeat("ä\r\n", 100_000) })
	if len(rx.Message) > 400 || strings.ContainsAny(rx.Message, "\x1b\r\n") {
		t.Errorf("%d bytes: %q", len(rx.Message), clip(rx.Message, 300))
	}
}

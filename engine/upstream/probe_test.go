package upstream

import (
	"bufio"
	"bytes"
	"net/http"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestQuestion: what a proxy is asked with is no shorter than what it is to
// carry, does nothing, and has lines that lean servers have room for.
func TestQuestion(t *testing.T) {
	for _, n := range []int{len(getHead), 511, 512, 513, 3000, 16 << 10} {
		early := []byte("GET /?" + string(bytes.Repeat([]byte("q"), max(0, n-len(getHead)-1))) + getHead[len("GET /"):])
		q := question(ask{t: flow.Target{Name: "a.example", Port: 80}, early: early})
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(q)))
		if err != nil || r.Method != "OPTIONS" || r.RequestURI != "*" || r.Host != "a.example" || !r.Close {
			t.Fatalf("%d: %v %+v", n, err, r)
		}
		if len(q) < len(early) || len(q) > 2*len(early)+questionBytes+100 {
			t.Errorf("%d bytes for %d", len(q), len(early))
		}
		for line := range bytes.Lines(q) {
			if len(line) > 100 {
				t.Errorf("a line of %d bytes", len(line))
			}
		}
	}
	if hello := helloBytes(t); !bytes.Equal(question(ask{early: hello}), hello) {
		t.Error("a greeting is asked with something else")
	}
}

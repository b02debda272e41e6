package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/apiserver"
)

// A service of another version is told from one that answers nonsense, and
// never shown as an error of a JSON library.
func TestOtherVersion(t *testing.T) {
	var header, body string
	status := http.StatusOK
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if header != "" {
			w.Header().Set(api.VersionHeader, header)
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
	for _, tc := range []struct {
		name, header, body string
		status             int
		code               api.ErrorCode
		want               string
	}{
		{"the header says so", "2", `{"anything":1}`, 200, api.ErrVersion, "version 1 of the local API, the service version 2"},
		{"a call that is no more", "2", `{"code":"not_found","message":"no such call"}`, 404, api.ErrVersion, "the service version 2"},
		{"the answer says so", "", `{"state":{"now":"on"},"version":{"api":3}}`, 200, api.ErrVersion, "the service version 3 (its answer to GET /v1/status: state is a object)"},
		{"a field of another kind", "1", `{"state":5,"version":{"api":1}}`, 200, api.ErrVersion, "the service another one (its answer to GET /v1/status: state is a number)"},
		{"no JSON", "", "hello", 200, api.ErrProtocol, "does not speak our API"},
		{"cut short", "1", `{"state":"on"`, 200, api.ErrProtocol, "does not speak our API"},
	} {
		header, body, status = tc.header, tc.body, tc.status
		_, err := c.Status(t.Context())
		var e *api.Error
		if !errors.As(err, &e) || e.Code != tc.code || !strings.Contains(e.Message, tc.want) || e.Hint == "" || strings.Contains(e.Error(), "json:") {
			t.Errorf("%s: %#v", tc.name, err)
		}
	}
	header, body, status = "", `{"type":"status","status":{"state":7}}`+"\n", 200
	err := c.Watch(t.Context(), func(api.Event) error { return nil })
	if e := (*api.Error)(nil); !errors.As(err, &e) || e.Code != api.ErrVersion {
		t.Errorf("watch: %v", err)
	}
}

// The service says its version in every answer, refusals included.
func TestServiceSaysItsVersion(t *testing.T) {
	c := serve(t, apiserver.New(nil, apiserver.Options{}).ServeHTTP)
	for _, path := range []string{"/v1/nonsense", "/v1/flows", "/"} {
		req, err := http.NewRequestWithContext(context.Background(), "GET", "http://atlantic"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := c.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := req.Write(conn); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 4096)
		n, _ := conn.Read(answer)
		if !strings.Contains(string(answer[:n]), "\r\n"+api.VersionHeader+": 1\r\n") {
			t.Errorf("%s: %s", path, answer[:n])
		}
	}
}

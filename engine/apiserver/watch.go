package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// watch sends a full status and then events, one JSON object per line, until
// the client leaves, the service ends, or the client does not take an event in
// time.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, _ string) error {
	defer s.watchers.Add(-1)
	if s.watchers.Add(1) > maxWatchers {
		return &api.Error{Code: api.ErrInternal, Message: fmt.Sprintf("there are %d watchers already", maxWatchers),
			Hint: "end some of the programs that watch the service"}
	}
	rc := http.NewResponseController(w)
	// The server's deadline for a whole request would end the stream.
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("prepare a stream: %w", err)
	}
	ctx := r.Context()
	events := s.backend.Watch(ctx) // before Status: nothing falls between the two
	st := s.backend.Status()
	header(w, "application/x-ndjson")
	w.Header().Set("Connection", "close") // the stream's end is the connection's
	ev, ok := api.Event{Type: "status", Time: time.Now().UTC(), Status: &st}, true
	enc := json.NewEncoder(w)
	for ok {
		if rc.SetWriteDeadline(time.Now().Add(eventTimeout)) != nil || enc.Encode(ev) != nil || rc.Flush() != nil {
			return nil // it left, or was too slow
		}
		select {
		case ev, ok = <-events:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

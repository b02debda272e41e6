package origin

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/websocket"
)

// SegmentSeconds is the length of one video segment.
const SegmentSeconds = 4

// Tier is one quality of the segment server.
type Tier struct {
	Name    string
	BitRate int // bit/s: the larger of two big video services' recommendations
}

// Tiers are the qualities that /hls/NAME/ serves.
func Tiers() []Tier {
	return []Tier{{"480p", 1_100_000}, {"720p", 3_000_000}, {"1080p", 5_000_000}, {"4k", 20_000_000}}
}

// SegmentBytes is the size of one segment of seconds length.
func (t Tier) SegmentBytes(seconds int) int64 { return int64(t.BitRate) / 8 * int64(seconds) }

// SinkResult is the answer of /sink: what arrived.
type SinkResult struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// handler serves
//
//	/bytes?n=&seed=      the first n bytes of the seed's Stream
//	/sink                PUT or POST: SinkResult of the body
//	/ws                  WebSocket echo of text and binary messages
//	/hls/TIER/index.m3u8, /hls/TIER/N.ts   (?s= seconds of a segment)
//	/slow?head=&body=    waits head, then sends 10 bytes, one each body/10
//	/ip, /proto, /status?code=, /  small answers
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, "hello from the lab\n")
	})
	mux.HandleFunc("/ip", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	mux.HandleFunc("/proto", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.Proto) })
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.FormValue("code"))
		if err != nil || code < 200 || code > 599 {
			http.Error(w, "code must be 200 to 599", http.StatusBadRequest)
			return
		}
		w.WriteHeader(code)
	})
	mux.HandleFunc("/bytes", serveBytes)
	mux.HandleFunc("/sink", sink)
	mux.HandleFunc("/slow", slow)
	mux.HandleFunc("/hls/{tier}/{file}", hls)
	// A Server, not a Handler: clients without an Origin header are welcome.
	mux.Handle("/ws", websocket.Server{Handler: echoMessages})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Counters.Requests.Add(1)
		mux.ServeHTTP(w, r)
	})
}

// echoMessages sends every message back with the type it came with.
func echoMessages(ws *websocket.Conn) {
	ws.MaxPayloadBytes = 16 << 20
	type message struct {
		kind byte
		data []byte
	}
	codec := websocket.Codec{
		Marshal: func(v any) ([]byte, byte, error) { m := v.(*message); return m.data, m.kind, nil },
		Unmarshal: func(data []byte, kind byte, v any) error {
			*v.(*message) = message{kind, data}
			return nil
		},
	}
	for {
		var m message
		if codec.Receive(ws, &m) != nil || codec.Send(ws, &m) != nil {
			return
		}
	}
}

func serveBytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.FormValue("n"), 10, 64)
	seed, seedErr := strconv.ParseUint(r.FormValue("seed"), 10, 64)
	if r.FormValue("seed") == "" {
		seedErr = nil
	}
	if err != nil || n < 0 || seedErr != nil {
		http.Error(w, "want ?n=BYTES&seed=NUMBER", http.StatusBadRequest)
		return
	}
	sendStream(w, n, seed)
}

func sendStream(w http.ResponseWriter, n int64, seed uint64) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	// Without its ReadFrom, so that chunks are 128 KiB and not 32.
	io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{Bytes(n, seed)}, make([]byte, min(n+1, 128<<10)))
}

func sink(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, r.Body, make([]byte, 128<<10))
	if err != nil {
		http.Error(w, fmt.Sprintf("after %d bytes: %v", n, err), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, "{\"bytes\":%d,\"sha256\":%q}\n", n, hex.EncodeToString(h.Sum(nil)))
}

func slow(w http.ResponseWriter, r *http.Request) {
	head, _ := time.ParseDuration(r.FormValue("head"))
	body, _ := time.ParseDuration(r.FormValue("body"))
	wait := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return true
		case <-r.Context().Done():
			return false
		}
	}
	if !wait(head) {
		return
	}
	for range 10 {
		io.WriteString(w, ".")
		w.(http.Flusher).Flush()
		if !wait(body / 10) {
			return
		}
	}
}

func hls(w http.ResponseWriter, r *http.Request) {
	seconds := SegmentSeconds
	if v, err := strconv.Atoi(r.FormValue("s")); err == nil && v > 0 && v <= 60 {
		seconds = v
	}
	file := r.PathValue("file")
	for _, t := range Tiers() {
		if t.Name != r.PathValue("tier") {
			continue
		}
		if file == "index.m3u8" {
			w.Header().Set("Content-Type", "application/vnd.apple.mpegurl")
			fmt.Fprintf(w, "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:%d\n", seconds)
			for i := range 60 {
				fmt.Fprintf(w, "#EXTINF:%d.0,\n%d.ts?s=%d\n", seconds, i, seconds)
			}
			io.WriteString(w, "#EXT-X-ENDLIST\n")
			return
		}
		if i, err := strconv.ParseUint(strings.TrimSuffix(file, ".ts"), 10, 32); err == nil {
			sendStream(w, t.SegmentBytes(seconds), i)
			return
		}
	}
	http.NotFound(w, r)
}

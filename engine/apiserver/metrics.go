package apiserver

import (
	"fmt"
	"net/http"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// metrics answers in the Prometheus text format, version 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats/).
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request, _ string) error {
	header(w, "text/plain; version=0.0.4; charset=utf-8")
	fmt.Fprint(w, metricsText(s.backend.Status(), s.backend.Upstreams(), s.watchers.Load()))
	fmt.Fprint(w, processText())
	return nil
}

// metricsText renders what /v1/status says. There are no per-host and no
// per-flow labels: their number would have no bound, and they would tell where
// the user goes.
func metricsText(st api.Status, ups api.Upstreams, watchers int64) string {
	var m metricsWriter
	m.family("atlantic_build_info", "gauge", "Version of the service.")
	m.sample(1, "version", st.Version.Service, "api", strconv.Itoa(st.Version.API))
	m.family("atlantic_state", "gauge", "1 for the state the service is in.")
	for _, state := range []api.State{api.Off, api.Starting, api.On, api.Stopping, api.Blocked} {
		m.sample(bit(st.State == state), "state", string(state))
	}
	m.family("atlantic_state_since_seconds", "gauge", "Unix time at which the state was entered.")
	m.sample(unixSeconds(st.Since))

	m.family("atlantic_flows_open", "gauge", "Flows open now.")
	m.sample(float64(st.Flows.Open))
	m.family("atlantic_flows_total", "counter", "Flows since the start, by what became of them.")
	m.sample(float64(st.Flows.Total), "outcome", "all")
	m.sample(float64(st.Flows.Refused), "outcome", "refused")
	m.sample(float64(st.Flows.Blocked), "outcome", "blocked")
	m.family("atlantic_bytes_total", "counter", "Payload carried, as apps see it.")
	m.sample(float64(st.Bytes.Up), "direction", "up", "via", "upstream")
	m.sample(float64(st.Bytes.Down), "direction", "down", "via", "upstream")
	m.sample(float64(st.Bytes.DirectUp), "direction", "up", "via", "direct")
	m.sample(float64(st.Bytes.DirectDown), "direction", "down", "via", "direct")
	m.family("atlantic_udp_blocked_total", "counter", "Datagrams not sent because the upstream carries no UDP.")
	m.sample(float64(st.UDP.Blocked))
	m.family("atlantic_reuse_ratio", "gauge", "Carried connections without a new handshake in their path, 0 to 1.")
	m.sample(st.Reuse)
	m.family("atlantic_flows_carried_total", "counter", "Connections that an upstream proxy has taken.")
	m.sample(float64(st.Flows.Carried))
	m.family("atlantic_flows_reused_total", "counter", "Carried connections without a new TCP or TLS handshake in their path.")
	m.sample(float64(st.Flows.Reused))
	m.family("atlantic_flows_warm_total", "counter", "Flows on a connection that had been made ahead.")
	m.sample(float64(st.Flows.Warm))
	m.family("atlantic_flows_early_total", "counter", "Flows whose first bytes left before the proxy had answered.")
	m.sample(float64(st.Flows.Early))

	m.family("atlantic_latency_seconds", "gauge", "Percentiles of all flows since the start, by phase.")
	m.percentiles("added", st.Latency.Added)
	m.percentiles("first_byte", st.Latency.FirstByte)
	m.percentiles("rules", st.Latency.Phases.Rules)
	m.percentiles("pick", st.Latency.Phases.Pick)
	m.percentiles("wait", st.Latency.Phases.Wait)
	m.percentiles("dial", st.Latency.Phases.Dial)
	m.percentiles("tls", st.Latency.Phases.TLS)
	m.percentiles("connect", st.Latency.Phases.Connect)

	m.family("atlantic_upstream_rtt_seconds", "gauge", "Round trip of the last connection set up to the upstream.")
	for _, u := range ups.Upstreams {
		m.sample(u.RTTms/1000, "upstream", u.Name)
	}
	m.family("atlantic_upstream_failures", "gauge", "Failures of the upstream in a row, now.")
	for _, u := range ups.Upstreams {
		m.sample(float64(u.Failures), "upstream", u.Name)
	}
	m.family("atlantic_upstream_warm", "gauge", "Connections to the upstream that were made ahead and wait.")
	for _, u := range ups.Upstreams {
		m.sample(float64(u.Warm), "upstream", u.Name)
	}
	m.family("atlantic_upstream_early_data", "gauge", "1 if the upstream carries early data.")
	for _, u := range ups.Upstreams {
		m.sample(bit(u.EarlyData), "upstream", u.Name)
	}
	m.family("atlantic_api_watchers", "gauge", "Clients of GET /v1/watch.")
	m.sample(float64(watchers))
	return m.text.String()
}

// processText tells what the service itself holds, so that growth over days
// shows.
func processText() string {
	now := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(now)
	var m metricsWriter
	m.family("atlantic_goroutines", "gauge", "Goroutines of the service.")
	m.sample(float64(now[0].Value.Uint64()))
	m.family("atlantic_heap_live_bytes", "gauge", "Bytes of the heap that the last garbage collection has left.")
	m.sample(float64(now[1].Value.Uint64()))
	return m.text.String()
}

// metricsWriter writes families of samples; sample belongs to the last family.
type metricsWriter struct {
	text strings.Builder
	name string
}

func (m *metricsWriter) family(name, kind, help string) {
	m.name = name
	fmt.Fprintf(&m.text, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one value; labels are name, value, name, value …
func (m *metricsWriter) sample(value float64, labels ...string) {
	m.text.WriteString(m.name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		m.text.WriteByte(sep)
		fmt.Fprintf(&m.text, `%s="%s"`, labels[i], labelValue(labels[i+1]))
	}
	if len(labels) > 0 {
		m.text.WriteByte('}')
	}
	m.text.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

func (m *metricsWriter) percentiles(what string, p api.Percentiles) {
	m.sample(p.P50/1000, "phase", what, "quantile", "0.5")
	m.sample(p.P95/1000, "phase", what, "quantile", "0.95")
	m.sample(p.P99/1000, "phase", what, "quantile", "0.99")
}

// labelValue escapes as the format says: backslash, double quote, line feed.
func labelValue(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(s, "?"))
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

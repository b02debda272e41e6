package engine

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// Lists of proxies: where they are read and kept, and what is said of them.

const (
	fetchTimeout = 30 * time.Second // for one reading of a list
	listWait     = 20 * time.Second // for the first one, where nothing else can be dialled
	fileSettle   = time.Minute      // for a file that has lost most of its lines; its owner writes it
)

// check finds out whether u answers. One whose proxies are of lists waits for
// the first reading.
func (us *upstreams) check(ctx context.Context, u *upstream.Upstream) error {
	if b := us.balancedOf(u.Spec().Name); b != nil && b.up == u {
		bounded, cancel := context.WithTimeout(ctx, listWait)
		err := b.resolver.Ready(bounded)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			us.opt.Log.Debug("wait for a list of proxies", "upstream", b.name, "err", err) // Check says it
		}
	}
	return u.Check(ctx)
}

// list is a subscription; what was read last from its url outlives a restart.
func (s *sources) list(p config.Provider) *resolve.List {
	sum := sha256.Sum256([]byte(p.URL.Reveal())) // the file's name shall not tell a token
	kept := filepath.Join(s.stateDir, "list-"+p.Name+"."+hex.EncodeToString(sum[:8]))
	l := &resolve.List{
		Name: p.Name, URL: p.URL, Scheme: p.Scheme, Every: p.Refresh, Fetch: s.fetch,
		Save: func(list []byte) error {
			err := config.WriteFileAtomic(kept, list, 0o600)
			if err == nil {
				dropOthers(kept)
			}
			return err
		},
		Load: func() ([]byte, error) {
			text, err := os.ReadFile(kept)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil // nothing was read yet
			}
			return text, err
		},
	}
	if filepath.IsAbs(p.URL.Reveal()) {
		l.Fetch, l.Settle = resolve.FetchFile, fileSettle
	}
	return l
}

// dropOthers removes what was kept of this list's former urls. A name has no dot,
// so no other list's is among them.
func dropOthers(kept string) {
	base := kept[:len(kept)-len(filepath.Ext(kept))]
	others, _ := filepath.Glob(base + ".*") // the pattern is sound but for odd state directories, where copies are left
	for _, f := range append(others, base) {
		if f != kept {
			_ = os.Remove(f) // what cannot be removed is not read either
		}
	}
}

// listClient reads lists past the TUN, as upstreams are reached: a list may be
// where the only upstream comes from.
func (us *upstreams) listClient() *http.Client {
	return &http.Client{
		Timeout: fetchTimeout,
		// Where a list moves to must not learn its former address, token and all.
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			req.Header.Del("Referer")
			if len(via) >= 10 {
				return errors.New("it redirects without end")
			}
			return nil
		},
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				name, addr, port, err := proxy.ParseHostPort(address, 0)
				if err != nil {
					return nil, err
				}
				return us.direct.DialStream(ctx, flow.Target{Name: name, Addr: addr, Port: port}, nil)
			},
		},
	}
}

// httpFetch reads lists over client, whose timeout covers the body too. Its
// errors have nothing of the url, which may hold a token.
func httpFetch(client *http.Client) resolve.Fetch {
	return func(ctx context.Context, url, etag string) (io.ReadCloser, string, bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, "", false, &resolve.NoList{Err: errors.New("its address cannot be read")}
		}
		if etag != "" {
			req.Header.Set("If-None-Match", etag)
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, "", false, withoutURL(err)
		}
		switch resp.StatusCode {
		case http.StatusOK:
			return resp.Body, resp.Header.Get("ETag"), false, nil
		case http.StatusNotModified:
			resp.Body.Close()
			return nil, etag, true, nil
		}
		resp.Body.Close()
		err = fmt.Errorf("its server answered %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
			err = &resolve.NoList{Err: err}
		}
		return nil, "", false, err
	}
}

// withoutURL is what went wrong in a request, without the address: errors of the
// dial and of certificates pass, those of net/http may quote where a redirect
// leads.
func withoutURL(err error) error {
	var dial *upstream.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &dial):
		return dial.Err
	case errors.As(err, &certificate):
		return certificate
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return errors.New("it was not read in time")
	}
	return &resolve.NoList{Err: errors.New("its server does not answer as a web server, or redirects to nowhere")}
}

// listInfos are what people may see of a resolver's lists.
func (b *balanced) listInfos() (out []api.List) {
	for _, i := range b.resolver.Lists() {
		l := api.List{Name: i.Name, Proxies: i.Proxies, Skipped: len(i.Skipped), Error: i.Error}
		if len(i.Skipped) > 0 {
			l.FirstSkipped = i.Skipped[0].Error()
		}
		if !i.Read.IsZero() {
			at := i.Read.UTC()
			l.Read = &at
		}
		out = append(out, l)
	}
	return out
}

// listWarnings say which lists of the upstream in use could not be read.
func (us *upstreams) listWarnings() (out []string) {
	cur := us.current()
	b := us.balancedOf(cur.Spec().Name)
	if b == nil || b.up != cur {
		return nil
	}
	for _, i := range b.resolver.Lists() {
		switch {
		case i.Error == "":
		case i.Proxies == 0:
			out = append(out, i.Error)
		case i.Read.IsZero():
			out = append(out, i.Error+"; the list kept from the last run stays in use")
		default:
			out = append(out, i.Error+"; the list read at "+i.Read.Local().Format("15:04 on 2 January")+" stays in use")
		}
	}
	return out
}

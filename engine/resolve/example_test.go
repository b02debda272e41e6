package resolve_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/atlanticproxy/atlanticproxy/assets"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

func Example() {
	// Three gateways, the first that works.
	gateways := resolve.Source{Gateways: []resolve.Gateway{
		{Name: "fra", Scheme: "https", Host: "fra.example.net", Port: 443, Username: "u", Password: "p"},
		{Name: "ams", Scheme: "socks5", Host: "ams.example.net", Port: 1080, UDP: true},
		{Name: "own", Scheme: "http", Host: "192.0.2.1", Port: 3128},
	}}
	// An account at Oxylabs: one exit in Germany for 10 minutes.
	data, _ := assets.Provider("oxylabs")
	oxylabs, err := resolve.ParseTemplate("oxylabs.toml", data)
	if err != nil {
		log.Fatal(err)
	}
	mode, _ := resolve.ParseSession("sticky-10m")
	account := resolve.Source{Account: &resolve.Account{Name: "ox", Template: oxylabs, Username: "bob", Password: "secret",
		Vars: map[string]string{"country": "de"}, Session: mode}}
	// A list.
	file := filepath.Join(os.TempDir(), fmt.Sprint("resolve-example-", os.Getpid()))
	defer os.Remove(file)
	_ = os.WriteFile(file, []byte("198.51.100.7:8080:bob:secret\n"), 0o600)
	list := resolve.Source{List: &resolve.List{Name: "mine", URL: proxy.Secret(file), Fetch: resolve.FetchFile}}

	r, err := resolve.New(resolve.Options{Name: "all", Policy: resolve.Failover, Sources: []resolve.Source{gateways, account, list}})
	if err != nil {
		log.Fatal(err)
	}
	if err := r.Refresh(context.Background()); err != nil { // go r.Run(ctx) does it as well
		log.Fatal(err)
	}
	e, _ := r.Pick(resolve.Key{App: "/usr/bin/firefox", Domain: "www.example.com"})
	r.Begin(e) // dial, and then
	r.Report(e, resolve.Outcome{Kind: resolve.Refused, Text: "connection refused"})
	next, _ := r.Next(resolve.Key{Domain: "www.example.com"}, []*resolve.Endpoint{e})
	fmt.Println(e, "→", next)
	for _, in := range r.List() {
		fmt.Println(in.Rank, in.Name, in.State)
	}
	// Output:
	// fra (https://fra.example.net:443) → ams (socks5://ams.example.net:1080)
	// 1 fra ok
	// 2 ams ok
	// 3 own ok
	// 4 ox ok
	// 5 http://198.51.100.7:8080 ok
}

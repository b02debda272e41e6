// Command atlantic is what people touch: the command line and, on a desktop,
// the tray icon. It needs no privileges; the service, atlanticd, does the work.
package main

import (
	"context"
	"os"

	"github.com/atlanticproxy/atlanticproxy/app/cli"
	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/app/tray"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "dev"

func main() {
	os.Exit(cli.Main(os.Args[1:], cli.Options{
		Version: version,
		Program: os.Args[0],
		Desktop: tray.Desktop,
		Tray: func(ctx context.Context, socket string) error {
			return tray.Run(ctx, tray.Options{Client: &client.Client{Socket: socket}, Hint: os.Stderr})
		},
	}))
}

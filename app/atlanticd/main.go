// Command atlanticd is the privileged service: it owns the TUN, the routes, the
// DNS setting and the upstream connections, and is steered over a local socket
// by `atlantic`.
//
//	main ─► newHost (the one place that picks an OS) ─► engine ─► apiserver on localsock
//
//	atlanticd run [--config FILE] [--state DIR] [--socket PATH] [--no-tun] [--up]
//	atlanticd rescue [--state DIR]
//
// It exits 0 after an orderly end, 1 on an error, 2 on wrong usage, 4 without
// the permission it needs.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
	"github.com/atlanticproxy/atlanticproxy/platform/paths"
)

// version is set by the linker: -X main.version=1.2.3.
var version = "dev"

func main() {
	if err := command().Execute(); err != nil {
		fail(os.Stderr, err)
		os.Exit(exitCode(err))
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "atlanticd",
		Short:         "AtlanticProxy's service: sends this computer's traffic through an upstream proxy",
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(runCommand(), rescueCommand())
	root.CompletionOptions.DisableDefaultCmd = true // atlantic is what people type
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = func(_ *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			if err != nil {
				return usageError{err}
			}
			return noArgs(about, rest)
		}
	}
	return root
}

func runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the service until it is told to stop",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runService(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", paths.Config(), "configuration `FILE`; none at all is fine")
	f.StringVar(&o.state, "state", paths.State(), "`DIR` for what is kept between runs")
	f.StringVar(&o.socket, "socket", os.Getenv(localsock.PathVar),
		"local API `PATH` (or set "+localsock.PathVar+"; default "+defaultSocket()+")")
	f.Lookup("socket").DefValue = "" // help shows what the program does, not this shell's environment
	f.BoolVar(&o.noTUN, "no-tun", false, "local HTTP and SOCKS5 proxy only; needs no root")
	f.BoolVar(&o.up, "up", false, "be on from the start")
	f.BoolVar(&o.verbose, "verbose", false, "log what happens to single flows")
	return cmd
}

func rescueCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "rescue",
		Short: "Undo what a crashed service left on this machine",
		Args:  noArgs,
		RunE:  func(*cobra.Command, []string) error { return rescue(os.Stdout, state) },
	}
	cmd.Flags().StringVar(&state, "state", paths.State(), "`DIR` that the service ran with")
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

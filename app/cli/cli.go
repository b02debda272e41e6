// Package cli is the command line: one file per verb, each a thin layer over
// app/client.
//
//	atlantic up ──► cobra ──► verb ──► client ──► the service
//	                            │
//	                            ├ stdout: what is now true (text, or --json)
//	                            └ stderr: what went wrong, and what to do (with --json on stdout too)
//
// Scripts may rely on the exit codes and on --json, whose documents carry
// "schema": 1; the text for people may change.
//
// It imports app/client, engine/api, platform/localsock and, for `config
// check|get|set`, which work on the file without a service, engine/config. It
// is imported by app/atlantic only.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/app/hint"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// Exit codes. They are part of the interface.
const (
	exitOK           = 0
	exitError        = 1
	exitUsage        = 2
	exitNotConnected = 3
	exitPermission   = 4
	exitAbsent       = 5
)

// Options are what main hands in.
type Options struct {
	Version string // of this program
	Program string // how it was started (os.Args[0]), for hints; "" means by its bare name
	// Tray shows the tray icon until ctx ends or the user quits; nil if this
	// build has none.
	Tray func(ctx context.Context, socket string) error
	// Desktop tells whether there is a desktop that shows tray icons; asked
	// when the program was started without arguments. nil means no.
	Desktop func() bool

	Stdin          io.Reader // nil: os.Stdin
	Stdout, Stderr io.Writer // nil: os.Stdout, os.Stderr
}

// Main runs one command line (without the program's name) and returns the exit
// code. Ctrl-C ends what it waits for.
func Main(args []string, o Options) int {
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{opt: o}
	a.out, a.err = newPrinter(o.Stdout, a.named), newPrinter(o.Stderr, a.named)
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	code := a.report(err, wantsJSON(cmd, args, err))
	if lost := a.out.w.err; lost != nil && code == exitOK {
		return a.report(fmt.Errorf("the output is lost: %w", lost), false)
	}
	return code
}

// wantsJSON asks the command that ran; if it has not read its flags to the end,
// the command line.
func wantsJSON(cmd *cobra.Command, args []string, err error) bool {
	asJSON, _ := cmd.Flags().GetBool("json")
	var unread *flagError
	if asJSON || !errors.As(err, &unread) && !cmd.DisableFlagParsing {
		return asJSON
	}
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	return slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
}

// app is one run of the program.
type app struct {
	opt      Options
	socket   string      // --socket, ATLANTIC_SOCKET, or "" for the default
	flag     *pflag.Flag // --socket
	out, err *printer
}

// named has text name the programs as the user can start them. The environment
// is theirs already.
func (a *app) named(text string) string {
	socket := ""
	if a.flag.Changed {
		socket = a.socket
	}
	return hint.For(a.opt.Program, socket).In(text)
}

func (a *app) client() *client.Client { return &client.Client{Socket: a.socket} }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "atlantic",
		Short: "Send this computer's traffic through a proxy, as if it were a VPN",
		Long: `AtlanticProxy sends this whole computer's traffic through an upstream proxy.

  atlantic up                                      turn it on
  atlantic up --upstream socks5://10.0.0.1:1080    … through that proxy
  atlantic status                                  how it is
  atlantic down                                    turn it off

Exit codes: 0 ok, 1 error, 2 usage, 3 not connected, 4 no permission, 5 no service.`,
		Args:          unknownCommand,
		SilenceErrors: true,
		SilenceUsage:  true,

		SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.opt.Tray != nil && a.opt.Desktop != nil && a.opt.Desktop() {
				return a.opt.Tray(cmd.Context(), a.socket)
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.opt.Stdin)
	root.SetOut(a.out.w)
	root.SetErr(a.err.w)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &flagError{usageError{flagText(err)}} })
	root.PersistentFlags().StringVar(&a.socket, "socket", os.Getenv(localsock.PathVar),
		"talk to the service on this socket (or set "+localsock.PathVar+")")
	a.flag = root.PersistentFlags().Lookup("socket")
	a.flag.DefValue = "" // help shows what the program does, not this shell's environment
	root.AddCommand(a.up(), a.down(), a.status(), a.upstreams(), a.use(), a.session(), a.flows(), a.why(),
		a.rescue(), a.config(), a.service(), a.tray(), a.version())
	root.AddCommand(later("health", "quality", "speedtest", "doctor", "bugreport", "dashboard", "share")...)
	strict(root)
	return root
}

// unknownCommand refuses arguments of a command that only has subcommands.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("unknown command %s for %q", shown(args[0]), cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return &usageError{msg}
}

// takes refuses any number of arguments but len(names), and names what is
// missing.
func takes(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return &usageError{cmd.CommandPath() + " needs " + strings.Join(names[len(args):], " and ")}
		case len(args) > len(names):
			return &usageError{fmt.Sprintf("%s does not know what to do with %s", cmd.CommandPath(), shown(args[len(names)]))}
		}
		return nil
	}
}

// group is a command that only has subcommands.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: unknownCommand, RunE: needsSubcommand}
	cmd.AddCommand(subs...)
	return cmd
}

func needsSubcommand(cmd *cobra.Command, _ []string) error {
	_ = cmd.Help()
	return &exitWith{exitUsage}
}

// strict has cobra's own commands take wrong arguments as ours do.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				about, rest, err := root.Find(args)
				if err != nil {
					return &usageError{err.Error()}
				}
				return unknownCommand(about, rest)
			}
		case "completion":
			cmd.Args, cmd.RunE = unknownCommand, needsSubcommand
			for _, shell := range cmd.Commands() {
				shell.Args = takes()
			}
		}
	}
}

package main

import (
	"io"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

func TestUsage(t *testing.T) {
	for line, code := range map[string]int{
		"bogus":              2,
		"--bogus":            2,
		"run extra":          2,
		"run --bogus":        2,
		"rescue extra":       2,
		"help bogus":         2,
		"help run extra":     2,
		"completion":         2,
		"completion bash x":  2,
		"":                   0,
		"help":               0,
		"help run":           0,
		"run --help":         0,
		"--version":          0,
		"run --no-tun --up=": 2,
	} {
		cmd := command()
		cmd.SetArgs(strings.Fields(line))
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		err := cmd.Execute()
		got := 0
		if err != nil {
			got = exitCode(err)
		}
		if got != code {
			t.Errorf("atlanticd %s: exit code %d, want %d (%v)", line, got, code, err)
		}
	}
}

// TestSocket: the flag wins over the environment, and help shows neither.
func TestSocket(t *testing.T) {
	t.Setenv(localsock.PathVar, "/from/env")
	for args, want := range map[string]string{"": "/from/env", "--socket /from/flag": "/from/flag"} {
		run := runCommand()
		if err := run.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if got := run.Flags().Lookup("socket").Value.String(); got != want {
			t.Errorf("run %s listens on %q, want %q", args, got, want)
		}
	}
	if help := runCommand().UsageString(); strings.Contains(help, "/from/env") {
		t.Errorf("the environment shows in\n%s", help)
	}
}

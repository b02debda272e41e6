package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func (a *app) flows() *cobra.Command {
	var asJSON, watch bool
	var kill uint64
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "List live flows: who talks to whom, through what, how fast",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case cmd.Flags().Changed("kill"):
				return a.client().KillFlow(cmd.Context(), kill)
			case watch && !asJSON:
				return a.watchFlows(cmd.Context())
			}
			list, err := a.client().Flows(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.out.json(list)
			}
			if len(list.Flows) == 0 {
				a.out.line("no flow is open")
				return nil
			}
			a.out.table(flowHead(), flowRows(list.Flows, time.Now()))
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "keep showing them")
	cmd.Flags().Uint64Var(&kill, "kill", 0, "end the flow with this ID")
	return cmd
}

// watchFlows shows the flows once a second until the user has had enough.
func (a *app) watchFlows(ctx context.Context) error {
	screen := liveScreen{p: a.out}
	for {
		list, err := a.client().Flows(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var b strings.Builder
		page := &printer{w: &output{w: &b}, color: a.out.color}
		page.table(flowHead(), flowRows(list.Flows, time.Now()))
		var lines []styled
		for _, l := range strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n") {
			lines = append(lines, styled(l))
		}
		if a.out.tty {
			screen.show(lines)
		} else {
			a.out.lines(lines)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func flowHead() []string {
	return []string{"ID", "VIA", "TARGET", "APP", "AGE", "UP", "DOWN", "SETUP", "RULE"}
}

func flowRows(flows []api.Flow, now time.Time) [][]string {
	var rows [][]string
	for _, f := range flows {
		app := filepath.Base(f.Process)
		if f.Process == "" {
			app = f.Inbound
		}
		target := f.Target
		if f.Network == "udp" {
			target += " (udp)"
		}
		rows = append(rows, []string{strconv.FormatUint(f.ID, 10), f.Via, target, app, age(now.Sub(f.Start)),
			size(f.Up), size(f.Down), setup(f), f.Rule})
	}
	return rows
}

// setup says what a flow's first milliseconds went into.
func setup(f api.Flow) string {
	if f.FirstErr != "" {
		return "failed: " + f.FirstErr
	}
	if f.Reused {
		return "reused, " + millis(f.Phases.Connect)
	}
	total := f.Phases.Dial + f.Phases.TLS + f.Phases.Connect
	if total == 0 {
		return "–"
	}
	return fmt.Sprintf("%s (tcp %s, tls %s, proxy %s)", millis(total), millis(f.Phases.Dial), millis(f.Phases.TLS), millis(f.Phases.Connect))
}

package cli

import (
	"errors"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
)

// rescue hands over to the atlanticd beside this program: restoring the machine
// must work when no service answers.
func (a *app) rescue() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "rescue",
		Short: "Restore the network after a crash, without the service",
		Args:  takes(),
		RunE: func(*cobra.Command, []string) error {
			if os.Geteuid() > 0 { // -1 on Windows, where atlanticd finds out
				return &failure{exitPermission, "only root may restore the network", "run: sudo atlantic rescue"}
			}
			daemon, err := existingDaemon()
			if err != nil {
				return err
			}
			args := []string{"rescue"}
			if state != "" {
				args = append(args, "--state", state)
			}
			run := exec.Command(daemon, args...)
			run.Stdout, run.Stderr = a.opt.Stdout, a.opt.Stderr
			err = run.Run()
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				return &exitWith{max(exit.ExitCode(), exitError)} // atlanticd has said why
			}
			return err
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "`DIR` that the service ran with (default: where it keeps its state)")
	return cmd
}

package cli

import "github.com/spf13/cobra"

func (a *app) tray() *cobra.Command {
	return &cobra.Command{
		Use:   "tray",
		Short: "Show the icon in the desktop's tray",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.opt.Tray == nil {
				return &failure{exitError, "this build has no tray", "use the command line: atlantic --help"}
			}
			return a.opt.Tray(cmd.Context(), a.socket)
		},
	}
}

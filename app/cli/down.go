package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

const downTimeout = 20 * time.Second // for the machine to be restored

func (a *app) down() *cobra.Command {
	var wait, asJSON bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Turn it off and leave the network as it was before",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			off := false
			st, err := waiting(cmd.Context(), a, "disconnecting", func(ctx context.Context, c *client.Client) (api.Status, error) {
				return c.SetPrefs(ctx, api.Prefs{On: &off})
			})
			if err != nil {
				return err
			}
			if wait && st.State != api.Off {
				if st, err = a.await(cmd.Context(), "disconnecting", downTimeout, untilOff); err != nil {
					return err
				}
			}
			if st.State == api.Off && st.Code == api.ErrNotRestored {
				return &notOn{failure{exitError, st.Cause, st.Hint}, st}
			}
			return a.result(st, asJSON)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", true, "wait until the network is restored")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the status as JSON")
	return cmd
}

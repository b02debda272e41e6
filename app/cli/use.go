package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func (a *app) use() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "use NAME|auto",
		Short: "Choose the upstream; on or off stays as it is",
		Args:  takes("the name of an upstream"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return takes("the name of an upstream")(cmd, nil)
			}
			st, err := waiting(cmd.Context(), a, "looking at the upstream", func(ctx context.Context, c *client.Client) (api.Status, error) {
				return c.SetPrefs(ctx, api.Prefs{Upstream: &args[0]})
			})
			if err != nil {
				return err
			}
			if st.State == api.Off && st.Unkept == "" && !asJSON {
				a.out.line("%s", a.out.text("%s will be used; turn it on with: atlantic up", upstreamText(st.Upstream)))
				return nil
			}
			return a.result(st, asJSON)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			ups, err := a.client().Upstreams(cmd.Context())
			if err != nil || len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			names := []string{"auto"}
			for _, u := range ups.Upstreams {
				names = append(names, u.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the status as JSON")
	return cmd
}

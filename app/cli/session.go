package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func (a *app) session() *cobra.Command {
	return group("session", "Show the exit identities in use, or take a new one", a.sessionNew(), a.sessionShow())
}

func (a *app) sessionNew() *cobra.Command {
	var asJSON bool
	var want api.NewSession
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Take a new exit identity; open connections keep the old one",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := waiting(cmd.Context(), a, "looking at the new exit", func(ctx context.Context, c *client.Client) (api.MadeSession, error) {
				return c.NewSession(ctx, want)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return a.out.json(s)
			}
			a.out.line("%s", a.out.text("%s new session %s%s", a.out.green("●"), a.out.bold(s.ID), ends(s.Session)))
			return nil
		},
	}
	cmd.Flags().StringVar(&want.Upstream, "upstream", "", "the provider or group (default: the one in use)")
	cmd.Flags().StringVar(&want.App, "app", "", "only for this program, where sessions are per app")
	cmd.Flags().StringVar(&want.Domain, "domain", "", "only for this domain, where sessions are per domain")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (a *app) sessionShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "List the exit identities in use",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Sessions(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.out.json(list)
			}
			if len(list.Sessions) == 0 {
				a.out.line("%s", a.out.dim("no sessions: the upstreams in use have fixed credentials"))
				return nil
			}
			var rows [][]string
			for _, s := range list.Sessions {
				whose := s.App
				if s.Domain != "" {
					whose = s.Domain
				}
				if whose == "" {
					whose = "all"
				}
				rows = append(rows, []string{s.Upstream, s.ID, whose, age(time.Since(s.Since)), until(s, time.Now()), s.Address})
			}
			a.out.table([]string{"UPSTREAM", "SESSION", "FOR", "AGE", "ENDS IN", "GATEWAY"}, rows)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// ends is what a new session's line says of its end.
func ends(s api.Session) string {
	if in := until(s, time.Now()); in != "–" {
		return ", for " + in
	}
	return ""
}

// until is how long a session lasts yet, "–" if no time ends it.
func until(s api.Session, now time.Time) string {
	if s.Expires == nil {
		return "–"
	}
	return age(s.Expires.Sub(now))
}

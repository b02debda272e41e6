package cli

import (
	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func (a *app) why() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "why HOST[:PORT]",
		Short: "Tell which way traffic to a host would take, and which rule says so",
		Args:  takes("a host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := a.client().Why(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return a.out.json(w)
			}
			a.out.line("%s", a.whyHeadline(w))
			for _, row := range [][2]string{{"rule", w.Rule}, {"dns", w.DNS}, {"udp", w.UDP}, {"last error", w.LastError}} {
				if row[1] != "" {
					a.out.line("  %s %s", a.out.dim(pad(row[0], 10)), row[1])
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (a *app) whyHeadline(w api.Why) styled {
	p := a.out
	switch w.Verdict {
	case "block":
		return p.text("%s is %s", p.bold(w.Host), p.red("blocked"))
	case "direct":
		return p.text("%s is reached %s", p.bold(w.Host), p.yellow("directly"))
	}
	return p.text("%s goes through %s", p.bold(w.Host), p.green(w.Upstream))
}

func pad(s string, width int) string {
	for len(s) < width {
		s += " "
	}
	return s
}

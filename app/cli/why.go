package cli

import (
	"net"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func (a *app) why() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "why HOST[:PORT]|URL",
		Short: "Tell which way traffic to a host would take, and which rule says so",
		Args:  takes("a host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return takes("a host")(cmd, nil)
			}
			w, err := a.client().Why(cmd.Context(), hostOf(args[0]))
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
			for _, p := range w.Programs {
				a.out.line("  %s %s (%s), UDP %s", a.out.dim(pad(p.Program, 10)), wayText(p), p.Rule, p.UDP)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// hostOf takes the host and port out of a URL; anything else stays as it is.
func hostOf(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "":
		return s
	case u.Scheme == "http" && u.Port() == "":
		return net.JoinHostPort(u.Hostname(), "80") // without a port the service takes 443
	}
	return u.Host
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

// wayText says where one program's connections go.
func wayText(p api.WhyProgram) string {
	switch p.Verdict {
	case "block":
		return "is blocked"
	case "direct":
		return "goes directly"
	}
	return "goes through " + p.Upstream
}

func pad(s string, width int) string {
	for len(s) < width {
		s += " "
	}
	return s
}

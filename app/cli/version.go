package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// versions is what `version --json` prints.
type versions struct {
	Schema  int    `json:"schema"`
	CLI     string `json:"cli"`
	Go      string `json:"go"`
	System  string `json:"system"`
	Commit  string `json:"commit,omitempty"`
	Service string `json:"service"` // "" if none is running
	API     int    `json:"api"`     // of the service
}

func (a *app) version() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this program and of the service",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Schema: api.Schema, CLI: a.opt.Version, Go: runtime.Version(),
				System: runtime.GOOS + "/" + runtime.GOARCH, Commit: commit()}
			if st, err := a.client().Status(cmd.Context()); err == nil {
				v.Service, v.API = st.Version.Service, st.Version.API
			}
			if asJSON {
				return a.out.json(v)
			}
			a.out.line("atlantic %s (%s, %s)", v.CLI, v.System, v.Go)
			switch {
			case v.Service == "":
				a.out.line("service  not running")
			case v.Service != v.CLI:
				a.out.line("service  %s   %s", v.Service, a.out.yellow("not the same version: restart it with: sudo atlantic service stop; sudo atlantic service start"))
			default:
				a.out.line("service  %s", v.Service)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// commit is what this program was built from, if the build says.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}

package cli

import (
	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// later makes verbs that this version does not have. They are kept from meaning
// something else meanwhile, and help does not list them.
func later(names ...string) []*cobra.Command {
	var cmds []*cobra.Command
	for _, name := range names {
		cmds = append(cmds, &cobra.Command{Use: name, Short: "Not in this version", Hidden: true, DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return &api.Error{Code: api.ErrUnsupported, Message: cmd.CommandPath() + " is not in this version",
					Hint: "what there is: " + cmd.Parent().CommandPath() + " --help"}
			}})
	}
	return cmds
}

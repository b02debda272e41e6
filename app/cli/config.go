package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/platform/paths"
)

func (a *app) config() *cobra.Command {
	cmd := group("config", "Check, show and change the configuration",
		a.configCheck(), a.configShow(), a.configGet(), a.configSet())
	cmd.AddCommand(later("import")...)
	return cmd
}

// fileFlag adds --file to a verb that works on the file, without a service.
func fileFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("file", "f", paths.Config(), "the configuration file")
}

func (a *app) configCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration file without using it",
		Args:  cobra.ArbitraryArgs,
	}
	path := fileFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		named := cmd.Flags().Changed("file")
		if len(args) == 1 && !named {
			*path, named = args[0], true
		} else if len(args) > 0 {
			return &usageError{"config check takes one file"}
		}
		c, err := config.Load(*path)
		if err != nil {
			return err
		}
		switch {
		case c.Path == "" && named:
			return &failure{exitError, *path + " does not exist", "without a file the defaults are in force (upstream direct)"}
		case c.Path == "":
			a.out.line("%s does not exist: the defaults are in force (upstream direct)", *path)
			return nil
		}
		a.out.line("%s is valid: %d upstreams, %d rules", *path, len(c.Names()), len(c.Rules))
		return nil
	}
	return cmd
}

func (a *app) configShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the configuration that the service uses, defaults included",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client().Config(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.out.json(c)
			}
			from := "no file: defaults"
			if c.Path != "" {
				from = c.Path
			}
			a.out.line("%s", a.out.dim("# "+from))
			for line := range strings.Lines(c.TOML) {
				a.out.line("%s", strings.TrimRight(line, "\r\n"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (a *app) configGet() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print one value of the file, such as tun.mtu or upstream.paris.url",
		Args:  takes("a key"),
	}
	path := fileFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		c, err := config.Load(*path)
		if err != nil {
			return err
		}
		value, err := c.Get(args[0])
		if err != nil {
			return err
		}
		a.out.line("%s", value)
		return nil
	}
	return cmd
}

func (a *app) configSet() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set KEY VALUE",
		Short: "Change one value of the file; comments stay, a wrong value changes nothing",
		Args:  takes("a key", "a value"),
	}
	path := fileFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := config.Set(*path, args[0], args[1]); err != nil {
			return err
		}
		a.out.line("%s is written; a running service takes it up when it starts again", *path)
		return nil
	}
	return cmd
}

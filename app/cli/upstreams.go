package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func (a *app) upstreams() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "upstreams",
		Short: "List what traffic can leave through",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ups, err := a.client().Upstreams(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.out.json(ups)
			}
			a.printUpstreams(ups)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func (a *app) printUpstreams(ups api.Upstreams) {
	var rows [][]string
	for _, u := range ups.Upstreams {
		mark, trouble := " ", ""
		if u.InUse {
			mark = "●"
		}
		if u.Failures > 0 {
			trouble = "failed " + strconv.Itoa(u.Failures) + "×: " + u.Error
		}
		udp := "–"
		if u.UDP {
			udp = "yes"
		}
		rows = append(rows, []string{mark, u.Name, u.Scheme, u.Address, millis(u.RTTms), udp, earlyText(u.Early), strconv.Itoa(u.Warm),
			strconv.FormatUint(u.Flows, 10), trouble})
		rows = append(rows, listRows(u.Lists)...)
		rows = append(rows, endpointRows(u.Endpoints)...)
	}
	a.out.table([]string{" ", "NAME", "SCHEME", "ADDRESS", "RTT", "UDP", "EARLY DATA", "WARM", "FLOWS", ""}, rows)
	a.out.line("%s", a.out.dim("chosen: "+ups.Choice+" · change it: atlantic use NAME|auto"))
}

// maxEndpoints are shown of one upstream; a list may have thousands.
const maxEndpoints = 16

// listRows tell of lists that could not be read, or not as a whole.
func listRows(all []api.List) (rows [][]string) {
	for _, l := range all {
		trouble := l.Error
		if trouble == "" && l.Skipped > 0 {
			trouble = strconv.Itoa(l.Skipped) + " lines are skipped, the first is " + l.FirstSkipped
		}
		if trouble != "" {
			rows = append(rows, []string{" ", "  list " + l.Name, "", strconv.Itoa(l.Proxies) + " proxies", "", "", "", "", "", trouble})
		}
	}
	return rows
}

func endpointRows(all []api.Endpoint) (rows [][]string) {
	for i, e := range all {
		if i == maxEndpoints {
			return append(rows, []string{" ", "  … " + strconv.Itoa(len(all)-i) + " more: --json", "", "", "", "", "", "", "", ""})
		}
		trouble := e.Error
		if e.State == "open" {
			trouble = "left alone for a while: " + e.Error
		}
		rows = append(rows, []string{" ", "  " + strconv.Itoa(e.Rank) + " " + e.Name, e.Scheme, e.Address, millis(e.ConnectMS), "",
			earlyText(e.Early), strconv.Itoa(e.Warm), strconv.FormatUint(e.Flows, 10), trouble})
	}
	return rows
}

// earlyText is a verdict on early data for people.
func earlyText(verdict string) string {
	switch verdict {
	case "carries":
		return "yes"
	case "refuses":
		return "no"
	case "unknown":
		return "untried"
	}
	return "–"
}

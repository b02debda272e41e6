// Package snapshot tells whether a machine's network is as it was: it records
// addresses, links, all routes, rules, the nftables ruleset, resolv.conf and
// sysctls, and compares two records line by line.
//
//	before := Take(run, files) … the program under test … after := Take(run, files)
//	Diff(before, after) == ""   ◄── restored
//
// What changes by itself (lifetimes, counters, handles, statistics) is left
// out. It runs ip(8) and nft(8) through a function, so it looks into whichever
// namespace that function leads to. A leaf of the lab.
package snapshot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strings"
)

// Command makes a command that runs where the snapshot is to be taken.
type Command func(name string, args ...string) *exec.Cmd

// Options of Take.
type Options struct {
	Command Command
	// Files are recorded by content, type, mode and link target: the name as
	// shown, and where to read it from here.
	Files map[string]string
	// Sysctls are names like net/ipv4/ip_forward; see Sysctls.
	Sysctls []string
}

// Snapshot is one record; section name to sorted lines.
type Snapshot map[string][]string

// Sysctls are those that VPN programs touch, for the devices given.
func Sysctls(devices ...string) []string {
	list := []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
		"net/ipv4/conf/all/src_valid_mark", "net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect"}
	for _, d := range append([]string{"all", "default"}, devices...) {
		for _, v := range []string{"rp_filter", "route_localnet", "arp_ignore", "arp_announce", "accept_local", "forwarding"} {
			list = append(list, "net/ipv4/conf/"+d+"/"+v)
		}
		for _, v := range []string{"disable_ipv6", "accept_ra", "forwarding"} {
			list = append(list, "net/ipv6/conf/"+d+"/"+v)
		}
	}
	return list
}

// Take records everything. A missing nft(8) is an error like any other.
func Take(opt Options) (Snapshot, error) {
	s := Snapshot{}
	for name, args := range map[string][]string{
		"addr":    {"ip", "-j", "addr"},
		"link":    {"ip", "-j", "-d", "link"},
		"route":   {"ip", "-j", "-4", "route", "show", "table", "all"},
		"route6":  {"ip", "-j", "-6", "route", "show", "table", "all"},
		"rule":    {"ip", "-j", "-4", "rule"},
		"rule6":   {"ip", "-j", "-6", "rule"},
		"nft":     {"nft", "-j", "list", "ruleset"},
		"sysctls": append([]string{"sysctl", "-e"}, dotted(opt.Sysctls)...),
	} {
		if name == "sysctls" && len(opt.Sysctls) == 0 {
			continue
		}
		var stderr bytes.Buffer
		cmd := opt.Command(args[0], args[1:]...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("snapshot: %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
		}
		if name == "sysctls" {
			s[name] = strings.Split(strings.TrimSpace(string(out)), "\n")
			sort.Strings(s[name])
			continue
		}
		if s[name], err = lines(out); err != nil {
			return nil, fmt.Errorf("snapshot: %s: %w", strings.Join(args, " "), err)
		}
	}
	for name, path := range opt.Files {
		s["file "+name] = file(path)
	}
	return s, nil
}

func dotted(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = strings.ReplaceAll(n, "/", ".")
	}
	return out
}

// file describes one file, link or absence.
func file(path string) []string {
	info, err := os.Lstat(path)
	if err != nil {
		return []string{"absent"}
	}
	out := []string{"type and mode " + info.Mode().String()}
	if info.Mode()&fs.ModeSymlink != 0 {
		to, _ := os.Readlink(path)
		return append(out, "link to "+to)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return append(out, "unreadable: "+err.Error())
	}
	return append(out, fmt.Sprintf("content %q", b))
}

// lines makes each element of a JSON array a line, without what is volatile.
func lines(out []byte) ([]string, error) {
	if len(bytes.TrimSpace(out)) == 0 {
		return nil, nil
	}
	var v any
	dec := json.NewDecoder(bytes.NewReader(out))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if m, ok := v.(map[string]any); ok {
		v = m["nftables"]
	}
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("not a JSON array")
	}
	var all []string
	for _, e := range list {
		if m, ok := e.(map[string]any); ok && (len(m) == 0 || m["metainfo"] != nil) {
			continue
		}
		b, err := json.Marshal(strip(e))
		if err != nil {
			return nil, err
		}
		all = append(all, string(b))
	}
	// The order of nft's objects is part of their meaning, but handles of
	// recreated objects change it too; rules carry their chain in the line.
	sort.Strings(all)
	return all, nil
}

// strip removes fields that change without anybody's doing.
func strip(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range []string{"handle", "valid_life_time", "preferred_life_time", "expires", "age", "used",
			"stats", "stats64", "packets", "bytes", "cache", "hold_timer"} {
			delete(v, k)
		}
		for k := range v {
			v[k] = strip(v[k])
		}
	case []any:
		for i := range v {
			v[i] = strip(v[i])
		}
	}
	return v
}

// Diff lists what is only in a ("-") or only in b ("+"), by section; "" if they
// are equal.
func Diff(a, b Snapshot) string {
	var out strings.Builder
	names := map[string]bool{}
	for n := range a {
		names[n] = true
	}
	for n := range b {
		names[n] = true
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	for _, n := range sorted {
		for _, l := range without(a[n], b[n]) {
			fmt.Fprintf(&out, "%s\n  - %s\n", n, l)
		}
		for _, l := range without(b[n], a[n]) {
			fmt.Fprintf(&out, "%s\n  + %s\n", n, l)
		}
	}
	return out.String()
}

// without is the lines of a that b has not, counting repetitions.
func without(a, b []string) []string {
	have := map[string]int{}
	for _, l := range b {
		have[l]++
	}
	var out []string
	for _, l := range a {
		if have[l]--; have[l] < 0 {
			out = append(out, l)
		}
	}
	return out
}

package linux

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The resolv.conf that is in force is the one that was there, with our lines in
// front and the name servers in it made comments:
//
//	# AtlanticProxy is on, and answers for names. …
//	#atlantic-added c6120002
//	#atlantic-was link "../run/systemd/resolve/stub-resolv.conf" 5f0c21aa
//	nameserver 198.18.0.2
//	# mine
//	#atlantic-kept nameserver 192.168.7.1
//	search lan.example
//
// So ours can be taken out again line by line, whatever others have written
// meanwhile, from the file alone: no journal is needed. Our addresses stand in
// hexadecimal digits there, because `sed -i s/198.18.0.2/9.9.9.9/` would change
// them too, and what it has made would be taken out as ours.
const (
	headOurs = "# AtlanticProxy is on, and answers for names. When it goes off it takes its lines out of here, and\n" +
		"# puts back what stands behind #atlantic-kept; `sudo atlantic rescue` does so too. Other lines stay.\n"
	headBefore = "# Written by AtlanticProxy while it is on" // by versions before 27 November 2026

	markAdded = "#atlantic-added "
	markWas   = "#atlantic-was "
	markKept  = "#atlantic-kept "

	maxResolvConf = 64 << 10          // bytes of one that is not ours
	maxOurs       = 4 * maxResolvConf // bytes of one that is: a mark is longer than the shortest line
	maxServers    = 8
	maxSearch     = 32 // domains
)

// withOurs is the file that names servers in place of those in former, and
// remembers former.
func withOurs(former *savedFile, servers []netip.Addr) []byte {
	var b bytes.Buffer
	b.WriteString(headOurs)
	servers = servers[:min(len(servers), maxServers)]
	for _, a := range servers {
		fmt.Fprintf(&b, "%s%x\n", markAdded, a.AsSlice())
	}
	switch former.Kind {
	case kindSymlink:
		fmt.Fprintf(&b, "%slink %q %08x\n", markWas, former.Target, former.Sum)
	case kindMissing:
		fmt.Fprintf(&b, "%snothing\n", markWas)
	}
	for _, a := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	for line := range bytes.Lines(former.Content) {
		if _, ok := nameserver(line); ok {
			b.WriteString(markKept)
		}
		b.Write(line)
	}
	return b.Bytes()
}

// ownNets are where the engine's resolvers are unless it is told otherwise: the
// second is nobody else's, and beside it the first is ours as well (RFC 2544:
// no real network's).
var ownNets = [2]netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd61:746c:616e:7469::/64")}

// ownServers are the name servers in content that can only be ours.
func ownServers(content []byte) []netip.Addr {
	servers := nameservers(content)
	if !slices.ContainsFunc(servers, ownNets[1].Contains) {
		return nil
	}
	return slices.DeleteFunc(servers, func(a netip.Addr) bool { return !ownNets[0].Contains(a) && !ownNets[1].Contains(a) })
}

// withoutOurs takes out what withOurs has put into a file, which others may
// have edited. Name servers in also are ours, whatever else is in the file. ours
// tells whether there was anything; kind and target are what the marks say of
// the place where the file is now ("" without any), and sum is what they say of
// what the link led to.
func withoutOurs(content []byte, also []netip.Addr) (text []byte, was savedFile, ours bool) {
	mine := append(ownServers(content), also...)
	for line := range strings.Lines(string(content)) {
		if digits, ok := strings.CutPrefix(line, markAdded); ok {
			if raw, err := hex.DecodeString(strings.TrimSpace(digits)); err == nil {
				if a, ok := netip.AddrFromSlice(raw); ok {
					mine = append(mine, a)
				}
			}
		}
	}
	head := strings.SplitAfter(headOurs, "\n")
	for line := range bytes.Lines(content) {
		s := string(line)
		switch {
		case strings.HasPrefix(s, markKept):
			text = append(text, line[len(markKept):]...)
		case strings.HasPrefix(s, markWas):
			readWas(strings.TrimSpace(s[len(markWas):]), &was)
		case strings.HasPrefix(s, markAdded), s == head[0], s == head[1], strings.HasPrefix(s, headBefore):
		default:
			if a, ok := nameserver(line); !ok || !slices.Contains(mine, a) {
				text = append(text, line...)
				continue
			}
		}
		ours = true
	}
	return text, was, ours
}

// readWas reads what stands behind markWas.
func readWas(text string, was *savedFile) {
	if text == "nothing" {
		was.Kind = kindMissing
		return
	}
	quoted, err := strconv.QuotedPrefix(strings.TrimPrefix(text, "link "))
	if err != nil {
		return
	}
	if was.Target, err = strconv.Unquote(quoted); err == nil && was.Target != "" {
		was.Kind = kindSymlink
		sum, _ := strconv.ParseUint(text[strings.LastIndexByte(text, ' ')+1:], 16, 32)
		was.Sum = uint32(sum)
	}
}

// formerFile is what will be put back when now is found in place of resolv.conf:
// what was there before us, with all edits that others have made since. last is
// what it was when we looked the last time, nil if we never did; servers are
// ours. ours tells whether there is anything to take out of now.
func formerFile(now, last *savedFile, servers []netip.Addr) (former *savedFile, ours bool) {
	if last == nil {
		servers = nil // only where the marks say so: another program may use the same address
	}
	text, was, ours := withoutOurs(now.Content, servers)
	switch {
	case last != nil && len(bytes.TrimSpace(now.Content)) == 0 && now.Kind != kindSymlink:
		return last, true // emptied or deleted: nobody's wish that there are no names
	case !ours:
		return now, false
	}
	f := *now
	f.Content = text
	if was.Kind == "" && last != nil && now.Kind == kindFile { // the marks are gone
		was = *last
	}
	if was.Kind != "" {
		f.Kind, f.Target, f.Sum = was.Kind, was.Target, was.Sum
	}
	if last != nil && len(nameservers(text)) == 0 { // they took ours for all of them
		f.Content = append(nameserverLines(last.Content), text...)
	}
	return &f, true
}

// edited tells whether the content of what a symbolic link led to was changed
// in our file.
func (s *savedFile) edited() bool { return s.Sum != 0 && crc32.ChecksumIEEE(s.Content) != s.Sum }

// nameserver reads one line by resolv.conf(5).
func nameserver(line []byte) (netip.Addr, bool) {
	fields := strings.Fields(string(line))
	if len(fields) < 2 || fields[0] != "nameserver" {
		return netip.Addr{}, false
	}
	text, _, _ := strings.Cut(fields[1], "#")
	a, err := netip.ParseAddr(text)
	return a, err == nil
}

// nameservers reads resolv.conf(5); what it does not understand it skips.
func nameservers(content []byte) []netip.Addr {
	var servers []netip.Addr
	for line := range bytes.Lines(content) {
		if a, ok := nameserver(line); ok && len(servers) < maxServers {
			servers = append(servers, a)
		}
	}
	return servers
}

// nameserverLines are the lines that nameservers reads, each ended.
func nameserverLines(content []byte) []byte {
	var b []byte
	for line := range bytes.Lines(content) {
		if _, ok := nameserver(line); ok {
			b = append(append(b, bytes.TrimRight(line, "\r\n")...), '\n')
		}
	}
	return b
}

// comments are the lines of a resolv.conf that are no settings.
func comments(content []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(content) {
		if t := bytes.TrimSpace(line); len(t) > 0 && (t[0] == '#' || t[0] == ';') {
			b.Write(line)
		}
	}
	return b.Bytes()
}

// settings are the words after keyword in a resolv.conf.
func settings(content []byte, keyword string) []string {
	var words []string
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == keyword {
			words = append(words, fields[1:]...)
		}
	}
	return words
}

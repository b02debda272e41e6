package listener

import "bytes"

// Some logins are those of a connection and not of a request: after NTLM or
// Negotiate has passed by it, a server takes whatever comes by it for that
// user's (RFC 4559 section 6). Such a connection to a target serves one
// connection of an app alone, and is never pooled.

// isBinding says whether a scheme may log in to a connection. Those that are
// known not to (IANA's registry, 2026-11; each request bears its own proof) are
// few, and an unknown one costs a connection only.
func isBinding(scheme []byte) bool {
	for _, s := range [...]string{
		"basic", "bearer", "digest", "dpop", "gnap", "hoba", "mutual", "oauth", "privatetoken",
		"scram-sha-1", "scram-sha-256", "vapid", "concealed", "aws4-hmac-sha256", "aws", "hawk", "token", "",
	} {
		if is(scheme, s) {
			return false
		}
	}
	return true
}

// scheme is the first word of credentials or of a challenge (RFC 9110 section 11).
func scheme(b []byte) []byte {
	b = bytes.TrimLeft(b, " \t")
	if i := bytes.IndexAny(b, " \t"); i >= 0 {
		b = b[:i]
	}
	return b
}

// offersBinding says whether one of the challenges in a WWW-Authenticate or
// Proxy-Authenticate field has a scheme that binds. An element of the list that
// begins with name=value belongs to the challenge before.
func offersBinding(value []byte) bool {
	for quoted, begin, i := false, 0, 0; i <= len(value); i++ {
		switch {
		case i+1 < len(value) && quoted && value[i] == '\\':
			i++
		case i < len(value) && value[i] == '"':
			quoted = !quoted
		case i == len(value) || value[i] == ',' && !quoted:
			word := scheme(value[begin:i])
			if !bytes.ContainsAny(word, "=\"") && isBinding(word) {
				return true
			}
			begin = i + 1
		}
	}
	return false
}

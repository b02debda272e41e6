package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Kind says whose fault an error is and what sort of fault.
type Kind uint8

const (
	Refused     Kind = iota + 1 // the upstream refused or reset the connection
	Unreachable                 // no route to the upstream, or its name does not resolve
	Timeout                     // the upstream did not answer in time
	Auth                        // the upstream does not accept our credentials
	TLS                         // the TLS handshake with the upstream failed
	Protocol                    // the answer is not one a proxy of this kind gives
	Target                      // the upstream works; the target does not
)

func (k Kind) String() string {
	switch k {
	case Refused:
		return "refused"
	case Unreachable:
		return "unreachable"
	case Timeout:
		return "timeout"
	case Auth:
		return "auth"
	case TLS:
		return "tls"
	case Protocol:
		return "protocol"
	case Target:
		return "target"
	}
	return "unknown"
}

// Error is every failure of an upstream but a cancelled context. Its text says
// what and where, Hint what a person can do; neither holds credentials.
type Error struct {
	Kind     Kind
	Upstream string      // its name; "" where the caller knows whom it dialled
	Reason   flow.Reason // how to refuse the app
	Err      error       // what happened
	Hint     string      // "" if there is nothing useful to say
	Status   int         // the proxy's: HTTP's, or below 100 a SOCKS5 reply; 0 if it gave none
	Silent   bool        // it was reached, and did not answer in time: perhaps the target did not

	words map[string]string // header fields of the answer, names in lower case
}

func (e *Error) Error() string {
	switch {
	case e.Upstream == "":
		return e.Err.Error()
	case e.Kind == Target:
		return fmt.Sprintf("via upstream %q: %v", e.Upstream, e.Err)
	}
	return fmt.Sprintf("upstream %q: %v", e.Upstream, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// FromUpstream says that the upstream is at fault, not the target.
func (e *Error) FromUpstream() bool { return e.Kind != Target }

// fault makes an Error in a dialer; Upstream.wrap fills in the name.
func fault(k Kind, err error, hint string) *Error {
	return &Error{Kind: k, Reason: reasonOf(k), Err: err, Hint: hint}
}

func targetFault(r flow.Reason, err error) *Error {
	return &Error{Kind: Target, Reason: r, Err: err}
}

func reasonOf(k Kind) flow.Reason {
	switch k {
	case Timeout:
		return flow.TimedOut
	case Refused, Auth:
		return flow.Refused
	}
	return flow.Unreachable
}

const hintAuth = "check user and password"

// dialFault sorts an error of connecting by TCP.
func dialFault(err error) *Error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fault(Refused, err, "nothing listens there: check host and port, and that the proxy runs")
	case isTimeout(err):
		return fault(Timeout, err, "no answer: check host, port and firewall")
	}
	var de *net.DNSError
	if errors.As(err, &de) {
		return fault(Unreachable, err, "check the host name")
	}
	if errors.Is(err, syscall.ECONNRESET) {
		return fault(Refused, err, "")
	}
	return fault(Unreachable, err, "check the network connection")
}

// talkFault sorts an error of an exchange with a connected proxy.
func talkFault(what string, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	switch {
	case isTimeout(err):
		e := fault(Timeout, fmt.Errorf("%s: connected, but no complete answer in time", what), "the proxy is overloaded, or this is not a proxy's port")
		e.Silent = true
		return e
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fault(Protocol, fmt.Errorf("%s: the proxy closed the connection before it answered", what), "check that scheme and port are right")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fault(Refused, fmt.Errorf("%s: the proxy reset the connection", what), "check that scheme and port are right and that the proxy admits this address")
	}
	return fault(Protocol, fmt.Errorf("%s: %w", what, err), "")
}

// tlsFault sorts an error of a TLS handshake.
func tlsFault(err error) *Error {
	hint := ""
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	switch {
	case isTimeout(err):
		return fault(Timeout, errors.New("TLS handshake: connected, but no answer in time"), "check the port: it may not speak TLS")
	case errors.As(err, &unknown):
		hint = "its certificate is signed by an unknown authority: set ca to the authority's certificate"
	case errors.As(err, &name):
		hint = "its certificate is for another name: set sni to the name in the certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		hint = "its certificate has expired or is not valid yet: check this computer's clock, or renew the certificate"
	case errors.As(err, &record):
		hint = "the port does not speak TLS"
		if string(record.RecordHeader[:]) == "HTTP/" {
			hint = "it speaks plain HTTP: use http:// instead of https://"
		}
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		hint = "it closed the connection: check that the port speaks TLS"
	}
	return fault(TLS, fmt.Errorf("TLS handshake: %w", err), hint)
}

func isTimeout(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) {
		return true
	}
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// directFault sorts an error of dialling a target without a proxy: it is
// always the target's.
func directFault(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	r := flow.Unreachable
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		r = flow.Refused
	case isTimeout(err):
		r = flow.TimedOut
	}
	return targetFault(r, err)
}

package config

import (
	"errors"
	"fmt"

	"github.com/atlanticproxy/atlanticproxy/assets"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

// Account is what the vendor's template makes of p, which is not a list: what
// the vendor does not take is an error. It reads the files that p names.
func (p Provider) Account() (*resolve.Account, error) {
	t, err := p.template()
	if err != nil {
		return nil, err
	}
	mode, err := resolve.ParseSession(p.Session)
	if err != nil {
		return nil, err
	}
	a := &resolve.Account{
		Name: p.Name, Template: t, Username: p.Username, Password: p.Password,
		Vars:    map[string]string{"country": p.Country, "state": p.State, "city": p.City, "zone": p.Zone, "isp": p.ISP},
		Session: mode, Pinned: p.Pinned,
		UsernameFormat: p.UsernameFormat, PasswordFormat: p.PasswordFormat,
		Scheme: p.Scheme, Host: p.Host, Port: uint16(p.Port),
	}
	for _, port := range p.Ports {
		a.Ports = append(a.Ports, uint16(port))
	}
	ca, err := readCA(p.CA)
	if err != nil {
		return nil, err
	}
	a.Attached = proxy.Spec{CA: ca, NoEarly: !p.EarlyData}
	if p.Password == "" && p.PasswordFrom != "" { // of config set, which reads no secrets
		check := *a
		check.Password = "not read yet"
		return a, check.Validate()
	}
	return a, a.Validate()
}

// template reads the vendor's file: the user's own, or the built-in one.
func (p Provider) template() (*resolve.Template, error) {
	file, read := p.Kind+".toml", func() ([]byte, error) { return assets.Provider(p.Kind) }
	if p.Template != "" {
		file, read = p.Template, func() ([]byte, error) {
			data, _, err := readFile(p.Template, maxFileBytes)
			if err != nil {
				err = errTemplate{fmt.Errorf("template: %w", withoutPath(err))}
			}
			return data, err
		}
	}
	data, err := read()
	if err != nil {
		return nil, err
	}
	t, err := resolve.ParseTemplate(file, data)
	if err != nil {
		return nil, errTemplate{err}
	}
	return t, nil
}

// errTemplate is what is wrong with a vendor's file.
type errTemplate struct{ error }

func (e errTemplate) Unwrap() error { return e.error }

// failProvider places what Provider.Account has said.
func (s *source) failProvider(i int, p Provider, err error) error {
	key, hint := "kind", ""
	var pe *proxy.Error
	var ve *resolve.ParamError
	switch {
	case errors.As(err, &errCA{}):
		key, hint = "ca", "the absolute path of a PEM file that the service can read"
	case errors.As(err, &errTemplate{}):
		key, hint = "template", "a provider file, as in assets/providers"
	case errors.As(err, &ve):
		key, hint = ve.Param, ve.Hint
	case errors.As(err, &pe):
		key = pe.Field
	}
	path := fmt.Sprintf("provider[%d]", i)
	if _, given := s.keys[path+"."+key]; given {
		path += "." + key
	}
	return s.wrong(path, fmt.Sprintf("provider %q", p.Name), hint, err)
}

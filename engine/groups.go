package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
	"github.com/atlanticproxy/atlanticproxy/engine/route"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// Upstreams of several endpoints: [[provider]] and [[group]].
//
//	[[upstream]] ─► Gateway ─┐
//	[[provider]] ─► Account ─┼─► Source ─► Resolver ─► upstream.NewGroup
//	        list ─► List    ─┘

// addBalanced makes an upstream of each provider and group.
func (us *upstreams) addBalanced(cfg *config.Config, stateDir string) error {
	s := &sources{cfg: cfg, stateDir: stateDir, fetch: httpFetch(us.listClient())}
	for _, p := range cfg.Providers {
		source, err := s.of(p.Name, 1)
		if err != nil {
			return err
		}
		policy, err := resolve.ParsePolicy(p.Policy)
		if err != nil {
			return err
		}
		if err := us.balance(p.Name, policy, []resolve.Source{source}, p.Pool); err != nil {
			return fmt.Errorf("provider %q: %w", p.Name, err)
		}
	}
	for _, g := range cfg.Groups {
		policy, err := resolve.ParsePolicy(g.Policy)
		if err != nil {
			return err
		}
		var members []resolve.Source
		for i, m := range g.Members {
			weight := 1
			if len(g.Weights) > 0 {
				weight = g.Weights[i]
			}
			source, err := s.of(m, weight)
			if err != nil {
				return err
			}
			members = append(members, source)
		}
		if err := us.balance(g.Name, policy, members, config.DefaultPool); err != nil {
			return fmt.Errorf("group %q: %w", g.Name, err)
		}
	}
	return nil
}

func (us *upstreams) balance(name string, policy resolve.Policy, members []resolve.Source, pool int) error {
	b := &balanced{name: name}
	var err error
	b.resolver, err = resolve.New(resolve.Options{
		Name: name, Policy: policy, Sources: members, Log: us.opt.Log,
		Probe:   func(ctx context.Context, e *resolve.Endpoint) (time.Duration, error) { return b.up.Probe(ctx, e) },
		Resting: us.resting.Load,
		Open: func(endpoint string) bool {
			return slices.ContainsFunc(us.openFlows(), func(f route.Info) bool {
				return f.Trace.Endpoint == endpoint || f.Trace.Endpoint == "" && f.Via == name // of UDP, the group alone is known
			})
		},
	})
	if err != nil {
		return err
	}
	if b.up, err = upstream.NewGroup(name, b.resolver, us.pooled(pool)); err != nil {
		return err
	}
	if !slices.ContainsFunc(members, func(s resolve.Source) bool { return s.List != nil }) {
		b.gateway()
	}
	us.balanced = append(us.balanced, b)
	us.add(b.up)
	return nil
}

// balancedOf is the upstream of that name if it has several endpoints, or nil.
func (us *upstreams) balancedOf(name string) *balanced {
	for _, b := range us.balanced {
		if b.name == name {
			return b
		}
	}
	return nil
}

// run keeps all resolvers fresh until ctx ends.
func (us *upstreams) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, b := range us.balanced {
		wg.Go(func() {
			if err := b.resolver.Run(ctx); err != nil {
				us.opt.Log.Error("resolver", "group", b.name, "err", err)
			}
		})
	}
	wg.Go(func() { us.verdicts.run(ctx, us.opt.Log) })
	wg.Wait()
}

// balanced is an upstream with a resolver behind it.
type balanced struct {
	name     string
	resolver *resolve.Resolver
	up       *upstream.Upstream
	// Where all its endpoints are; "" if they are at several gateways, or may
	// come to be, as those of a list.
	scheme, address string
}

// gateway notes where all endpoints are, if that is one place.
func (b *balanced) gateway() {
	all := b.resolver.List()
	for _, i := range all {
		if i.Scheme != all[0].Scheme || i.Address != all[0].Address {
			return
		}
	}
	if len(all) > 0 {
		b.scheme, b.address = all[0].Scheme, all[0].Address
	}
}

// sources makes the members that groups and providers are built of.
type sources struct {
	cfg      *config.Config
	stateDir string
	fetch    resolve.Fetch
}

// of is the source that name, an upstream or a provider, stands for.
func (s *sources) of(name string, weight int) (resolve.Source, error) {
	for _, u := range s.cfg.Upstreams {
		if u.Name == name {
			spec, err := u.Spec()
			if err != nil {
				return resolve.Source{}, fmt.Errorf("upstream %q: %w", u.Name, err)
			}
			return resolve.Source{Gateways: []resolve.Gateway{{
				Name: u.Name, Scheme: spec.Scheme, Host: spec.Host, Port: spec.Port,
				Username: spec.Username, Password: spec.Password,
				Weight: weight, UDP: spec.Scheme == "socks5", Attached: spec,
			}}}, nil
		}
	}
	for _, p := range s.cfg.Providers {
		if p.Name != name {
			continue
		}
		if p.Kind == "list" {
			return resolve.Source{List: s.list(p)}, nil
		}
		a, err := p.Account()
		if err != nil {
			return resolve.Source{}, fmt.Errorf("provider %q: %w", p.Name, err)
		}
		a.Weight = weight
		return resolve.Source{Account: a}, nil
	}
	return resolve.Source{}, fmt.Errorf("there is no upstream or provider %q", name)
}

// Sessions lists the exit identities in use.
func (e *Engine) Sessions() api.Sessions {
	out := api.Sessions{Schema: api.Schema}
	for _, b := range e.ups.balanced {
		for _, i := range b.resolver.Sessions() {
			out.Sessions = append(out.Sessions, sessionOf(b.name, i))
		}
	}
	return out
}

// NewSession takes a new identity at the upstream asked for, or at the one in
// use. It has been dialled through when this returns.
func (e *Engine) NewSession(ctx context.Context, want api.NewSession) (api.Session, error) {
	name := want.Upstream
	if name == "" {
		name = e.ups.current().Spec().Name
	}
	b := e.ups.balancedOf(name)
	switch {
	case b != nil:
	case e.ups.named(name) != nil || name == e.ups.current().Spec().Name:
		return api.Session{}, &api.Error{Code: api.ErrBadRequest, Message: fmt.Sprintf("upstream %q has fixed credentials: it has no sessions", name),
			Hint: "sessions belong to a [[provider]]"}
	default:
		return api.Session{}, e.ups.unknown(name)
	}
	made, err := b.resolver.NewSession(ctx, resolve.Key{App: want.App, Domain: want.Domain}, b.up.CheckEndpoint)
	if err != nil {
		answer := Explain(err)
		answer.Message = "no new session, the old one stays: " + answer.Message
		return api.Session{}, answer
	}
	return sessionOf(name, made), nil
}

func sessionOf(name string, i resolve.Info) api.Session {
	s := api.Session{Upstream: name, ID: i.Session, App: i.App, Domain: i.Domain, Address: i.Address, Since: i.Since.UTC()}
	if !i.Expires.IsZero() {
		end := i.Expires.UTC()
		s.Expires = &end
	}
	return s
}

// endpoints are a resolver's members for people.
func (b *balanced) endpoints() []api.Endpoint {
	var out []api.Endpoint
	for _, i := range b.resolver.List() {
		e := api.Endpoint{
			Name: i.Name, Scheme: i.Scheme, Address: i.Address, State: i.State, Rank: i.Rank,
			Success: i.Success, Flows: i.Dials, Failures: i.Failures, Error: i.Error,
		}
		v, warm := b.up.EarlyAt(i.Scheme, i.Address)
		e.Early, e.Warm = v.String(), warm
		if i.Measured {
			e.ConnectMS, e.P95MS = ms(i.Connect), ms(i.P95)
		}
		if !i.RetryAt.IsZero() {
			at := i.RetryAt.UTC()
			e.RetryAt = &at
		}
		out = append(out, e)
	}
	return out
}

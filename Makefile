# AtlanticProxy. `make run` and `make test` are all a newcomer needs.

# Where go.dev's archive puts Go; sudo's PATH does not have it.
export PATH := $(PATH):/usr/local/go/bin
# Or go build fails wherever git mistrusts the owner of the checkout, as root does
# with a user's in a container. scripts/version says the version.
# One -trimpath for all, or the programs, vet and the tests compile everything twice.
export GOFLAGS := $(shell go env GOFLAGS 2>/dev/null) -buildvcs=false -trimpath

ifndef VERSION
VERSION := $(shell scripts/version)
endif

.DEFAULT_GOAL := help
.PHONY: help run test demo check bench build packages deps clean

help: ## these lines
	@sed -nE 's/^([a-z]+):[^#]*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

run: build ## build, and send this computer's traffic through an upstream (none configured: direct); Ctrl-C undoes it
	@if [ "$$(id -u)" = 0 ]; then exec bin/atlanticd run --up; \
	else echo "Not root: the local proxy only. For every app on this computer: sudo make run"; exec bin/atlanticd run --up --no-tun; fi

test: build ## everything: make check, the packages, end to end in network namespaces (needs root)
	@scripts/test check test-packages e2e

check: build ## formatting, vet and staticcheck for three systems, unit tests with the race detector
	@scripts/test check

demo: build ## the old way and ours, side by side in a small internet of namespaces (needs root)
	@scripts/deps test
	go run ./lab/cmd/demo

bench: build ## figures for docs/PERFORMANCE.md, into bench/out (needs root); PEERS=DIR compares with other programs
	@scripts/deps bench
	@scripts/bench

build: ## bin/atlantic and bin/atlanticd
	@scripts/build $(VERSION)

packages: build ## dist/*.deb and dist/*.rpm
	cd installer && go run . -version $(VERSION) -bin ../bin -out ../dist
	@. scripts/common; give_back dist

deps: ## install what the tests need (Debian, Ubuntu)
	@scripts/deps test
	@scripts/roots

clean: ## remove what was built
	rm -rf bin dist

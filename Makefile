# AtlanticProxy. `make run` and `make test` are all a newcomer needs.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'

.DEFAULT_GOAL := help
.PHONY: help run test demo check bench build packages deps clean

help: ## these lines
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: build ## build, and send this computer's traffic through an upstream (none configured: direct); Ctrl-C undoes it
	@scripts/deps run
	@if [ "$$(id -u)" = 0 ]; then exec bin/atlanticd run --up; \
	else echo "Not root: the local proxy only. For every app on this computer: sudo make run"; exec bin/atlanticd run --up --no-tun; fi

test: check ## everything: checks, unit, race, fuzz seeds, packages, end to end in network namespaces (root)
	@scripts/e2e
	@scripts/test-packages

check: ## formatting, vet for three systems, staticcheck, unit tests with the race detector
	@scripts/deps test
	@scripts/check

demo: build ## the old way and ours, side by side in a small internet of namespaces (root)
	@scripts/deps test
	$(GO) run ./lab/cmd/demo

bench: build ## figures for docs/PERFORMANCE.md; set PEERS=DIR to compare with other programs
	@scripts/deps bench
	@scripts/bench

build: ## bin/atlantic and bin/atlanticd
	@mkdir -p bin
	$(BUILD) -o bin/ ./app/atlantic ./app/atlanticd

packages: build ## dist/*.deb and dist/*.rpm
	cd installer && $(GO) run . -version $(VERSION) -bin ../bin -out ../dist

deps: ## install what the tests need (Debian, Ubuntu)
	@scripts/deps test

clean: ## remove what was built
	rm -rf bin dist

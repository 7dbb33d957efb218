# Thin over cargo: every target is one or a few commands that can be typed by hand.

CARGO ?= cargo
FOR ?=
NAME ?=
OIDC := tests/peers/oidc

.DELETE_ON_ERROR:
.PHONY: help demo test fuzz peers bench lint fmt clippy deny doc

help:
	@echo 'make demo [FOR=30s]  watch a worker keep three organizations alive at a sandbox issuer'
	@echo 'make test            every test, real peers included; fetches what they need'
	@echo 'make fuzz [FOR=60s]  what reads bytes from outside, each target for so long'
	@echo 'make bench [NAME=fetch]  fetch, refresh, start and memory against their baselines; docs/performance.md'
	@echo 'make lint            format, clippy, documentation links, licences and sources of dependencies'

demo:
	$(CARGO) run --locked -- demo $(if $(FOR),--for $(FOR))

test: peers
	$(CARGO) test --locked

# Each target for FOR, in seconds (60s) or minutes (5m); two at once on two cores.
fuzz:
	for=$(or $(FOR),10s); case $$for in \
	  *m) ms=$$(($${for%m} * 60000));; *) ms=$$(($${for%s} * 1000));; esac; \
	BOLERO_RANDOM_TEST_TIME_MS=$$ms $(CARGO) test --locked --lib fuzz

# In release; each prints a table and writes target/bench/NAME.json.
bench:
	$(CARGO) bench --locked $(if $(NAME),--bench $(NAME),--bench fetch --bench refresh --bench start --bench memory)

# What the tests talk to and nobody here wrote: a certified authorization server, from npm, by its lock file.
peers: $(OIDC)/node_modules/.package-lock.json

$(OIDC)/node_modules/.package-lock.json: $(OIDC)/package-lock.json $(OIDC)/package.json
	tests/peers/need
	npm ci --prefix $(OIDC) --no-audit --no-fund
	touch $@

lint: fmt clippy doc deny

fmt:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --all-targets -- -D warnings

# Every link in the documentation leads somewhere.
doc:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items

deny:
	tests/peers/deny

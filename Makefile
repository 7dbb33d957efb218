# Thin over cargo: every target is one or a few commands that can be typed by hand.

CARGO ?= cargo
FOR ?=
NAME ?=
N ?=
# What the tests talk to and nobody here wrote, from npm: each a folder with a lock file.
PEERS := tests/peers/oidc tests/peers/webhooks
STATIC := $(shell uname -m)-unknown-linux-gnu

.DELETE_ON_ERROR:
.PHONY: help demo test fuzz simulate kills damage failovers replicas peers need image bench lint fmt clippy deny doc

help:
	@echo 'make demo [FOR=30s]  watch a worker keep three organizations alive at a sandbox issuer'
	@echo 'make test            every test, real peers included; fetches what they need'
	@echo 'make fuzz [FOR=60s]  what reads bytes from outside, each target for so long'
	@echo 'make simulate [SEEDS=1000]  simulate 400 days of every fault for each seed; docs/reliability.md'
	@echo 'make kills [N=1000]  kill the worker under load so many times; docs/reliability.md'
	@echo 'make damage [N=1000] damage the files of a vault so many times; docs/reliability.md'
	@echo 'make failovers [N=100] kill the primary of a PostgreSQL cluster under load so many times'
	@echo 'make replicas [N=100] kill and stop workers that share a vault so many times each'
	@echo 'make image           a static binary and the image that holds it; docs/deploy.md'
	@echo 'make bench [NAME=fetch]  fetch, refresh, import, start, idle, memory, board, disk, storm and replicas against their baselines; docs/performance.md'
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

# What `make test` does for a few seeds. CONSENTRY_SIMULATION_SEED=N replays the one that went wrong.
simulate:
	$(if $(SEEDS),CONSENTRY_SIMULATION_SEEDS=$(SEEDS)) $(CARGO) test --locked --release --lib simulation -- --nocapture

# What `make test` does 50 and 60 times, as often as is wanted. CONSENTRY_SEED repeats what a failed run printed.
kills: peers
	$(if $(N),CONSENTRY_KILLS=$(N)) $(CARGO) test --locked --test it -- --nocapture kills::

damage:
	$(if $(N),CONSENTRY_DAMAGES=$(N)) $(CARGO) test --locked --test it -- --nocapture damage::

failovers: peers
	$(if $(N),CONSENTRY_FAILOVERS=$(N)) $(CARGO) test --locked --test it -- --nocapture failover

replicas: peers
	$(if $(N),CONSENTRY_REPLICA_FAULTS=$(N)) $(CARGO) test --locked --test it -- --nocapture replicas::

# The target is named so that build scripts and macros are not made static too.
image:
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --locked --release --target $(STATIC) --bin consentry
	buildah --storage-driver vfs bud --isolation chroot --file deploy/Dockerfile.scratch \
	  --build-arg BINARY=target/$(STATIC)/release/consentry --tag consentry .

# In release; each prints a table and writes target/bench/NAME.json. NAME=build times a clean build, and only when it is asked to.
bench:
	$(CARGO) bench --locked $(if $(NAME),--bench $(NAME),--bench fetch --bench refresh --bench import --bench start --bench idle --bench memory --bench board --bench disk --bench storm --bench replicas)

# A browser, Prometheus and others from Debian; a certified authorization server; and a receiver of webhooks, which verifies with the specification's
# own library. What is there is not fetched again.
peers: need $(PEERS:%=%/node_modules/.package-lock.json)

need:
	tests/peers/need
	tests/peers/deploy/need

%/node_modules/.package-lock.json: %/package-lock.json %/package.json | need
	npm ci --prefix $* --no-audit --no-fund
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

# The two commands that matter are `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := tests/interop/.venv
PAGE := src/node/page/dist/index.html
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test unit interop verify fix bench powercut turmoil fuzz failover failover-smoke rolling-upgrade power-loss chaos chaos-smoke chaos-broken sim sim-test sim-bugs page setup build

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 17

demo: page ## three local nodes and a page to make a call in
	cargo build --package flotilla-node --bin flotilla
	$(TARGET)/debug/flotilla demo

test: setup build ## installs what is needed, then runs every test
	cargo test --workspace --no-fail-fast
	$(MAKE) powercut CUTS=20
	$(MAKE) interop
	$(MAKE) failover-smoke
	$(MAKE) chaos-smoke

unit: build ## Rust tests alone
	cargo test --workspace

interop: setup build ## LiveKit's own SDKs and Chromium against real clusters
	mkdir -p artifacts
	$(VENV)/bin/python -m pytest -ra -p no:cacheprovider tests/interop/python

sim: ## simulated clusters: SEEDS=2000 of them from FROM=0 on, or HOURS=300 of simulated time
	cargo run --release --package sim --bin sim -- --from $(or $(FROM),0) --seeds $(or $(SEEDS),2000) \
		$(if $(HOURS),--hours $(HOURS)) $(if $(PLAN),--plan $(PLAN)) $(SIM_ARGS)

sim-test: ## 500 seeds, four of them twice, plans of old bugs, planted bugs
	cargo test --workspace --test sim

sim-bugs: ## the simulator's planted bugs: which invariant catches each, and how soon
	cargo run --release --package sim --bin sim -- --bugs tests/sim/bugs

powercut: build ## cuts the power under a writing store (CUTS=200 by default), root needed
	$(TARGET)/debug/powercut --cuts $(or $(CUTS),200)

turmoil: build ## clusters under simulation: real consensus and store, from seeds (SEEDS=1000..2000)
	cargo test --workspace --test turmoil -- $(if $(SEEDS),--seeds $(SEEDS)) $(TURMOIL_ARGS)

fuzz: ## runs the fuzz targets with coverage feedback (MINUTES=30 each, TARGETS="session store")
	tests/fuzz/run.sh $(or $(MINUTES),30) $(TARGETS)

failover: setup build ## what clients see when nodes die, freeze, are cut off or drained (ROUNDS=50 of FAULTS), root needed
	$(TARGET)/debug/chaos failover --rounds $(or $(ROUNDS),50) $(if $(FAULTS),--faults $(FAULTS)) $(FAILOVER_ARGS)

failover-smoke: setup build ## a follower killed, a link cut, a node drained, three times each, under people on three SDKs, root needed
	mkdir -p artifacts
	$(TARGET)/debug/chaos failover --rounds 3 --faults kill-follower,cut-link,drain --quiet 5 \
		--python 2 --node 2 --chromium 1 --hears 2 --json artifacts/failover-smoke.json $(FAILOVER_ARGS)

rolling-upgrade: setup build ## a cluster goes from the version before (OLD=commit) to this one and back under ten people, root needed
	tests/previous.sh $(TARGET)/previous $(OLD)
	$(TARGET)/debug/chaos rolling-upgrade --old $(TARGET)/previous/flotilla --back $(UPGRADE_ARGS)

power-loss: setup build ## all nodes lose their power at once (ROUNDS=3) under people and writers, root needed
	$(TARGET)/debug/chaos power-loss --rounds $(or $(ROUNDS),3) $(POWER_ARGS)

chaos: setup build ## every kind of fault alone and overlapping, on three and five nodes; an hour, root needed
	$(TARGET)/debug/chaos matrix $(CHAOS_ARGS)

chaos-smoke: setup build ## kills, pauses and partitions under everything that clients do; two minutes, root needed
	$(TARGET)/debug/chaos smoke $(CHAOS_ARGS)

chaos-broken: setup build ## three deliberately broken programs, each of which must be found out, root needed
	cargo build --workspace --bin flotilla --features flotilla-node/planted-bugs
	cp $(TARGET)/debug/flotilla $(TARGET)/debug/flotilla-broken
	cargo build --workspace --bin flotilla
	FLOTILLA_BIN=$(abspath $(TARGET))/debug/flotilla-broken $(TARGET)/debug/chaos broken $(CHAOS_ARGS)

verify: page ## reads only: format, lints, layers, documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace --test tidy
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --quiet
	cd src/node/page && npx --no-install tsc --noEmit

fix: ## formats and applies the lints' suggestions
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

bench: ## commits beside etcd, and the cost of forwarding
	cargo build --release --workspace --bin flotilla --bin bench-commits --bin bench-forward
	$(TARGET)/release/bench-commits
	$(TARGET)/release/bench-forward

# The binaries that tests start, with the features that `cargo test --workspace` gives them: naming a
# package alone would choose other features and build every dependency a second time.
build: page
	cargo build --workspace --lib --bins --tests

page: $(PAGE) ## the demo page, built with vite

$(PAGE): $(wildcard src/node/page/src/*) src/node/page/index.html src/node/page/package-lock.json
	cd src/node/page && npm ci --silent && npm run --silent build

setup: ## installs what the tests need, from the package registries
	tests/setup.sh

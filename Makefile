# The two commands that matter are `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := tests/interop/.venv
PAGE := src/node/page/dist/index.html
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help demo test unit interop verify fix bench powercut page setup docs

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: page ## three local nodes and a page to make a call in
	cargo build --package flotilla-node --bin flotilla
	$(TARGET)/debug/flotilla demo

test: setup page ## installs what is needed, then runs every test
	cargo test --workspace --no-fail-fast
	$(MAKE) powercut CUTS=20
	$(MAKE) interop

unit: page ## Rust tests alone
	cargo test --workspace

interop: setup page ## LiveKit's own SDKs and Chromium against real clusters
	cargo build --package flotilla-node --bin flotilla
	mkdir -p artifacts
	$(VENV)/bin/python -m pytest -ra -p no:cacheprovider tests/interop/python

powercut: ## cuts the power under a writing store (CUTS=200 by default), root needed
	cargo build --package testkit --bin powercut
	$(TARGET)/debug/powercut --cuts $(or $(CUTS),200)

verify: page ## reads only: format, lints, layers, documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --package testkit --test tidy
	cargo doc --workspace --no-deps --quiet
	cd src/node/page && npx --no-install tsc --noEmit

fix: ## formats and applies the lints' suggestions
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

bench: ## commits beside etcd, and the cost of forwarding
	cargo build --release --package testkit --bin bench-commits --bin bench-forward
	$(or $(CARGO_TARGET_DIR),target)/release/bench-commits
	$(or $(CARGO_TARGET_DIR),target)/release/bench-forward

page: $(PAGE) ## the demo page, built with vite

$(PAGE): $(wildcard src/node/page/src/*) src/node/page/index.html src/node/page/package-lock.json
	cd src/node/page && npm ci --silent && npm run --silent build

setup: ## installs what the tests need, from the package registries
	tests/setup.sh

# What a person types: `make demo` and `make test`. Both install what is missing, as root or through sudo.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
export SUDO

# On CI every run gets a fresh checkout on a machine that may be the same: compiled dependencies stay outside of it.
ifeq ($(CI),true)
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/shardman
export CARGO_TARGET_DIR ?= $(CACHE)/target
else
CACHE ?= $(CURDIR)/target
endif
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
EXTENSION_TARGET ?= $(TARGET)/extension

PROGRAMS := ladle bowl monitor shardmanctl stolon-keeper stolon-sentinel stolon-proxy stolonctl

.PHONY: help setup build test fuzz check check-extension audit bench bench-proxy bench-stolon chaos demo demo-stop clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: ## install the Debian packages that are missing
	@scripts/setup

build: setup ## build all programs into ./bin and the extension
	cargo build --release --locked
	@mkdir -p bin
	@for program in $(PROGRAMS); do \
	    cmp -s $(TARGET)/release/$$program bin/$$program || install -m 755 $(TARGET)/release/$$program bin/; done
	@for alias in shardman-ladle:ladle shardman-bowl:bowl shardmand:bowl shardman-monitor:monitor; do \
	    ln -sfn $${alias#*:} bin/$${alias%:*}; done
	@$(MAKE) --no-print-directory install-extension

test: build ## run all tests
	scripts/test

# Bounded in time: what was tried until then counts.
fuzz: setup ## send damaged documents through all decisions, many more than the tests do
	PROPTEST_CASES=$(or $(CASES),20000) timeout 1800 cargo test --locked -p stolon --lib -- fuzz foreign || [ $$? = 124 ]

check: setup ## formatting, lints, dependency audit
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- --deny warnings
	@$(MAKE) --no-print-directory check-extension
	@$(MAKE) --no-print-directory audit

check-extension: check-pg-config
	CARGO_TARGET_DIR=$(EXTENSION_TARGET) PGRX_PG_CONFIG_PATH=$(PG_CONFIG) \
		cargo clippy --locked --release -p shardman-extension --features pg$(PG_MAJOR) -- --deny warnings

audit: ## licences, sources, duplicates and known vulnerabilities of dependencies
	scripts/audit "$(CACHE)"

bench: build bench-proxy ## measure start, failover, bulk load and the proxy, against limits, plain PostgreSQL and HAProxy
	cargo run --release --locked -p e2e --bin bench
	@$(MAKE) --no-print-directory bench-stolon

bench-stolon: build ## measure failover, switchover and idle costs of stolon clusters (RUNS=20, KINDS="kill idle")
	SHARDMAN_BIN_DIR=$(CURDIR)/bin cargo run --release --locked -p e2e --bin stolon-bench -- $(RUNS) $(KINDS)

bench-proxy: setup ## measure what stolon-proxy costs, beside HAProxy (ROUNDS=7 SECONDS_EACH=2 to change how long)
	@scripts/setup haproxy || echo "HAProxy could not be installed; measuring without it" >&2
	cargo build --release --locked -p stolon --bin stolon-proxy -p e2e --bin proxy-bench
	$(TARGET)/release/proxy-bench $(ROUNDS) $(SECONDS_EACH)

CHAOS_MINUTES ?= 15
CHAOS_FAILURES ?= 200
CHAOS_OUT ?= $(TARGET)/chaos

chaos: build ## campaigns of failures, as root: calm for CHAOS_MINUTES, then CHAOS_FAILURES random ones (CHAOS_SEED replays)
	@scripts/setup-chaos
	cargo build --release --locked -p chaos
	$(SUDO) $(TARGET)/release/chaos calm --parallel --bin bin --out $(CHAOS_OUT) --minutes $(CHAOS_MINUTES)
	$(SUDO) $(TARGET)/release/chaos lost --bin bin --out $(CHAOS_OUT) --failures $(CHAOS_FAILURES) \
		$(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

demo: build ## a cluster on this machine, and what it does when a node dies
	scripts/demo

demo-stop: ## stop the demo's cluster
	scripts/demo stop

clean: ## remove what was built
	cargo clean
	rm -rf bin

include mk/extension.mk

# The same targets locally and in CI. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
OUT ?= out

.PHONY: help setup build test guest guest-rig lab lab-full bench fmt lint purity fuzz docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what is missing (Debian 12; a second run installs nothing)
	@scripts/setup

build: setup ## build everything, optimised: target/release/weir
	cargo build --release --locked --bin weir

test: setup ## everything CI runs
	@scripts/test

guest: guest-rig build ## balancer and gateways on Debian's kernel in QEMU, by hand; RIG=DIRECTORY (540 MB, made if not there)
	@scripts/guest/all "$(RIG)"

# Before the release build, which takes minutes.
guest-rig:
	@: "$(or $(RIG),$(error RIG=DIRECTORY: what the guest boots from, on the root file system))"

lab: build ## the paper's experiment, short: at most 90 s of load; table, plots and JSON in out/lab
	target/release/weir lab run paper --quick --out $(OUT)/lab

lab-full: build ## the paper's experiment at the paper's length
	target/release/weir lab run paper --out $(OUT)/lab-full

bench: build ## data path, control path, balancer beside their references (a quarter of an hour; ARGS=--quick: minutes)
	target/release/weir lab bench --out $(OUT)/bench $(ARGS)

fmt: ## format
	cargo fmt --all
	cargo fmt --manifest-path crates/bpf/Cargo.toml
	cargo fmt --manifest-path fuzz/Cargo.toml

lint: setup ## formatting and clippy, warnings are errors
	@scripts/lint

purity: setup ## the pure crates build where there is no operating system
	@scripts/purity

fuzz: setup ## every decoder's fuzz target for a minute each
	@scripts/fuzz 60

docs: ## regenerate the checked-in references
	WEIR_UPDATE=1 cargo test --locked -p weir --bin weir references_are_up_to_date

clean: ## remove what was built (not what was installed)
	cargo clean
	rm -rf $(OUT) fuzz/target crates/bpf/target

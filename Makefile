# Two commands matter: `make run` and `make test`. Both install what they need (Debian, Ubuntu) and say what they do.

.DEFAULT_GOAL := help
.PHONY: help build run test lint bench soak clean

XTASK := cargo run --quiet --package xtask --

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

build: ## Host binaries to target/release, guest kernel and initramfs to target/guest
	$(XTASK) build

run: ## A container in a microVM; IMAGE=name and CMD="words" choose another
	$(XTASK) run $(if $(IMAGE),--image '$(IMAGE)') $(if $(CMD),--cmd '$(CMD)')

test: ## Every test, with a closing count; ONLY=lint,unit,host,e2e picks layers, FILTER= end-to-end tests
	$(XTASK) test $(if $(ONLY),--only $(ONLY)) $(if $(FILTER),--filter $(FILTER))

lint: ## Formatting, clippy, licences
	$(XTASK) lint

bench: ## The tables of docs/benchmarks.md, measured here; PEER=path starts a Firecracker beside the monitor
	$(XTASK) bench $(if $(PEER),--peer '$(PEER)')

soak: ## Containers, pods, execs and output by the thousand, hours of it: nothing is left, nothing grows; ONLY= picks parts, PERCENT= takes less
	$(XTASK) soak $(if $(ONLY),--only $(ONLY)) $(if $(PERCENT),--percent $(PERCENT)) $(if $(AT_ONCE),--at-once $(AT_ONCE))

clean: ## Remove what was built, except the cached guest kernel
	cargo clean

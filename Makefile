# The commands for working on Terrafirma; `make help` lists them.

SHELL := bash
.NOTPARALLEL:
.DEFAULT_GOAL := help

# Arguments, as in `make target NAME=x`. They are not taken from the environment, where NAME is common.
NAME := terrafirma
SSH_PORT := 2222
HTTPS_PORT :=
DISTRO := debian13
PYTHON := python3

BIN := .venv/bin
# A test waits for its server about as long as the server computes: three processes keep two cores busy.
WORKERS := $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) * 3 // 2 or 1)')
E2E := $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: export DEMO_STARTED := $(shell date +%s)
demo: venv ## Deploy the whole platform to a throw-away server on this machine, and ask its replicas over HTTPS
	testbed/target.sh terrafirma 2222 debian13 8443
	testbed/demo.sh terrafirma 2222 8443

.PHONY: test
test: alone venv images lint unit ## 15 minutes: lint, unit, and the main promises on targets
	$(E2E) -m "e2e and smoke and not long" tests/e2e

.PHONY: check
check: test ## 45 minutes: test, then every other end-to-end test that is not long; CI runs this
	$(E2E) -m "e2e and not smoke and not long" tests/e2e

.PHONY: long
long: alone venv images ## Hours: further cases of each kind, and all tests of releases with 20,000 requests each
	TERRAFIRMA_REQUESTS=20000 $(BIN)/pytest tests/e2e/app/test_releases.py
	$(E2E) -m long --ignore tests/e2e/app/test_releases.py tests/e2e

.PHONY: lint
lint: venv ## Check format, lint, types, shell scripts and generated pages
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy --cache-dir .mypy_cache/program --python-version 3.10 files/terrafirma
	$(BIN)/mypy --cache-dir .mypy_cache/host --python-version 3.10 files/terrafirma_host files/borg/*
	$(BIN)/python docs/settings.py --check
	$(BIN)/python docs/promises.py --check
	$(BIN)/shellcheck --external-sources testbed/*.sh files/docker/* files/firewall/* files/pgbouncer/* .ci/run

.PHONY: unit
unit: venv ## Run the tests that need no server
	$(BIN)/pytest --numprocesses 2 --dist loadfile tests/unit

.PHONY: bench
bench: venv engine images ## Measure the design's promises about speed
	testbed/bench.sh

.PHONY: target
target: ## Start a bare server as a container (NAME=, SSH_PORT=, HTTPS_PORT=, DISTRO=debian13, debian12 or ubuntu2404-like)
	@testbed/target.sh "$(NAME)" "$(SSH_PORT)" "$(DISTRO)" "$(HTTPS_PORT)"

.PHONY: untarget
untarget: ## Remove the target NAME= with its data
	@testbed/untarget.sh "$(NAME)"

.PHONY: engine
engine: ## Make sure that a Docker engine answers
	@testbed/engine.sh

.PHONY: images
images: engine ## Make the images of most targets and of the clients beside them; tests make the rest
	@testbed/image.sh debian13 bystander

.PHONY: alone
alone:
	@$(PYTHON) testbed/alone.py

.PHONY: venv
venv: .venv/.locked ## Make .venv with the packages that requirements.lock pins

.venv/.locked: requirements.lock
	@testbed/venv.sh "$(PYTHON)"

.PHONY: lock
lock: ## Pin the newest versions that pyproject.toml allows in requirements.lock
	@testbed/lock.sh "$(PYTHON)"

.PHONY: docs
docs: venv ## Write docs/settings.md from the settings, and docs/promises.md from the tests
	$(BIN)/python docs/settings.py
	$(BIN)/python docs/promises.py

.PHONY: clean
clean: ## Remove everything that these commands made: targets, images, .target/, .venv
	@testbed/clean.sh

# Everything that is run on the machine of whoever works on Terrafirma. `make help` lists it.

SHELL := bash
.NOTPARALLEL:
.DEFAULT_GOAL := help

# For the targets below, given as `make target NAME=x`. Not taken from the environment, where NAME is common.
NAME := terrafirma
SSH_PORT := 2222
HTTPS_PORT :=
DISTRO := debian13
PYTHON := python3

BIN := .venv/bin
E2E := $(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: export DEMO_STARTED := $(shell date +%s)
demo: venv ## The whole platform on a throw-away server on this machine, then four replicas answering over HTTPS
	testbed/target.sh terrafirma 2222 debian13 8443
	testbed/demo.sh terrafirma 2222 8443

.PHONY: test
test: alone venv images lint unit ## In 15 minutes: lint, unit, and the main promises on targets
	$(E2E) -m "e2e and smoke and not long" tests/e2e

.PHONY: check
check: test ## In an hour: test, then every other end-to-end test that is not long. CI runs this
	$(E2E) -m "e2e and not smoke and not long" tests/e2e

.PHONY: long
long: alone venv images ## In hours: more of each kind, and all tests of releases with 20,000 requests in each
	TERRAFIRMA_REQUESTS=20000 $(BIN)/pytest tests/e2e/app/test_releases.py
	$(E2E) -m long --ignore tests/e2e/app/test_releases.py tests/e2e

.PHONY: lint
lint: venv ## Format, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy --cache-dir .mypy_cache/program --python-version 3.10 files/terrafirma
	$(BIN)/mypy --cache-dir .mypy_cache/host --python-version 3.10 files/terrafirma_host files/borg/*
	$(BIN)/python docs/settings.py --check
	$(BIN)/python docs/promises.py --check
	$(BIN)/shellcheck --external-sources testbed/*.sh files/docker/* files/pgbouncer/* .ci/run

.PHONY: unit
unit: venv ## The tests that need no server
	$(BIN)/pytest --numprocesses 2 --dist loadfile tests/unit

.PHONY: bench
bench: venv engine images ## Measure, side by side, what the design promises
	testbed/bench.sh

.PHONY: target
target: ## A bare server as a container (NAME=, SSH_PORT=, HTTPS_PORT=, DISTRO=debian13, debian12 or ubuntu2404-like)
	@testbed/target.sh "$(NAME)" "$(SSH_PORT)" "$(DISTRO)" "$(HTTPS_PORT)"

.PHONY: untarget
untarget: ## Remove the target NAME= with its data
	@testbed/untarget.sh "$(NAME)"

.PHONY: engine
engine: ## A Docker engine that answers
	@testbed/engine.sh

.PHONY: images
images: engine ## The images from which most targets, and clients beside them, start; tests make the rest
	@testbed/image.sh debian13 bystander

.PHONY: alone
alone:
	@$(PYTHON) testbed/alone.py

.PHONY: venv
venv: .venv/.locked ## .venv with the packages that requirements.lock pins

.venv/.locked: requirements.lock
	@testbed/venv.sh "$(PYTHON)"

.PHONY: lock
lock: ## Pin the newest versions that pyproject.toml allows in requirements.lock
	@testbed/lock.sh "$(PYTHON)"

.PHONY: docs
docs: venv ## docs/settings.md from the settings and their defaults, docs/promises.md from the tests
	$(BIN)/python docs/settings.py
	$(BIN)/python docs/promises.py

.PHONY: clean
clean: ## Remove all that these commands made: targets, images, .target/, .venv
	@testbed/clean.sh

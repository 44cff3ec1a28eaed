# Each target does its own set-up: a bare Debian 12 with python3 and make is enough. As root it installs the Debian packages
# that the target needs and says which; otherwise it says what is skipped and why.
PYTHON ?= python3
BIN := .venv/bin
# More arguments for the program behind a target, e.g. make test ARGS="tests/unit -x --no-cov" (a part would miss the coverage floor)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-kube cluster test test-stacks lint bench image lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## pull two models from a local S3 server into a cache, with everything to see (no root, about two minutes)
	@$(PYTHON) scripts/prepare.py demo
	@$(BIN)/cacheagent demo $(ARGS)

demo-kube: ## the same on a real Kubernetes of three nodes: pods that start when their weights are there (root; three minutes)
	@$(PYTHON) scripts/prepare.py cluster
	@$(BIN)/python -m tests.e2e.demo_kube $(ARGS)

cluster: ## a real Kubernetes of three nodes with the chart installed, until Ctrl-C (root; ARGS=--bare without the chart)
	@$(PYTHON) scripts/prepare.py cluster
	@$(BIN)/python -m tests.e2e.cluster $(ARGS)

test: ## all tests, with branch coverage: those on a cluster beside the others
	@$(PYTHON) scripts/prepare.py test
	$(BIN)/python scripts/run_tests.py $(ARGS)

test-stacks: ## real engines on what the cache published (once 6 GB into ~/.cache; not a part of `make test`)
	@$(PYTHON) scripts/prepare.py test-stacks
	@$(BIN)/python -m tests.stacks.environments
	$(BIN)/python -m pytest -m stacks tests/stacks $(ARGS)

lint: ## ruff, mypy --strict, and who may import whom
	@$(PYTHON) scripts/prepare.py lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: ## measure against the hardware and against other tools (root for nginx and fio)
	@$(PYTHON) scripts/prepare.py bench
	$(BIN)/python -m benchmarks $(ARGS)

image: ## build the container image from locked wheels, without network in the build (root)
	@$(PYTHON) scripts/prepare.py image
	scripts/image $(ARGS)

lock: ## resolve requirements/*.txt again; ARGS=--upgrade for the newest versions
	@$(PYTHON) scripts/prepare.py lint
	scripts/lock $(ARGS)

clean: ## remove the environment and what was built
	rm -rf .venv .venv.lock build dist reports .coverage .coverage.*

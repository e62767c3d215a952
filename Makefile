# Everything a developer does with this checkout. Each target sets up what it needs first, from nothing if need be.
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vm check format bench proto lock clean

VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?=

help: ## Show these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## Start a cluster and analyse the standard library on it (needs root)
	@tools/setup demo
	@$(BIN)/python examples/code_metrics/demo.py

test: ## Run the tests (needs root for the sandboxes)
	@tools/setup dev
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-vm: ## Run the sandbox tests under cgroup v2 and v1, in emulated machines (Debian only)
	@tools/setup vm
	@$(BIN)/python tools/test_vm.py $(PYTEST_FLAGS)

check: ## Formatting, lint, types, protos
	@tools/setup dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint

format: ## Rewrite files in the project's format
	@tools/setup dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: ## Measure against floors taken in the same run (needs root)
	@tools/setup bench
	@$(BIN)/python -m benchmarks $(BENCH_FLAGS)

proto: ## Generate sdk/lambent/v1 from protos/
	@tools/setup dev
	@$(BIN)/python tools/generate_protos.py sdk

lock: ## Renew requirements/*.lock from pyproject.toml
	@tools/setup dev
	@tools/lock

setup: ## Only the set-up
	@tools/setup dev

clean: ## Remove what was made: environment, caches, results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build benchmarks/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

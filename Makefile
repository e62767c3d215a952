# Everything a developer does with this checkout. Each target sets up what it needs first, from nothing if need be.
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench proto lock clean need-etcd

VENV := .venv
BIN := $(VENV)/bin
DEFINES_SETUP := pyproject.toml tools/setup
PYTEST_FLAGS ?=

help: ## Show these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: $(VENV)/.ready-runtime | need-etcd ## Start a cluster and analyse the standard library on it (needs root)
	@$(BIN)/python examples/code_metrics/demo.py

test: $(VENV)/.ready-dev | need-etcd ## Run the tests (needs root for the sandboxes)
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: $(VENV)/.ready-dev ## Formatting, lint, types, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint

format: $(VENV)/.ready-dev ## Rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready-dev | need-etcd ## Measure against floors taken in the same run (needs root)
	@$(BIN)/python -m benchmarks $(BENCH_FLAGS)

proto: $(VENV)/.ready-dev ## Generate sdk/lambent/v1 from protos/
	@$(BIN)/python tools/generate_protos.py sdk

lock: $(VENV)/.ready-dev ## Renew requirements/*.lock from pyproject.toml
	@tools/lock

setup: $(VENV)/.ready-dev | need-etcd ## Only the set-up

clean: ## Remove what was made: environment, caches, results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build benchmarks/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready-%: requirements/%.lock $(DEFINES_SETUP)
	@tools/setup $*

# The package may have gone since the set-up ran.
need-etcd:
	@command -v etcd >/dev/null || tools/setup runtime

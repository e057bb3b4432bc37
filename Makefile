# Everything a person or the CI runs, by name. `make quickstart` and `make test` need nothing
# but Python (3.11 to 3.13) and make; both build their own virtual environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORES := $(shell getconf _NPROCESSORS_ONLN)


.PHONY: help quickstart test test-all check format bench snapshot reference base wheel clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	DS_BUILD_OPS=0 $(PIP) --editable '.[qlora,deepspeed,dev]'
	@touch $@

quickstart: $(VENV)/.core ## train, evaluate, merge and verify on what ships inside (no network, no GPU)
	$(BIN)/lora-sft quickstart

test: check ## lint, types, import directions, then the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) -m "not gpu and not slow"

test-all: check ## the long tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) -m "not gpu"

check: $(VENV)/.dev ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## the CPU benchmarks beside their peers (15 minutes), then their page
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.tables

snapshot: $(VENV)/.dev ## remake the snapshot of library fields after an upgrade
	$(BIN)/python tools/snapshot_library_fields.py
	$(MAKE) reference

reference: $(VENV)/.dev ## remake recipes/REFERENCE.md and the shelf's table
	$(BIN)/python tools/write_recipe_reference.py

base: $(VENV)/.dev ## rebuild the embedded base model from its seed and compare SHA-256
	$(BIN)/python tools/build_tiny_base.py --check

wheel: $(VENV)/.dev ## build dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## remove what was built, not what was trained
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache

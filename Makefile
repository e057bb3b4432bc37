# The commands for developers and for CI. `make help` lists them. `make quickstart` and `make test`
# need only Python (3.11 to 3.13) and make. They create their own virtual environment.

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

quickstart: $(VENV)/.core ## train, evaluate and merge the shipped model (no network, no GPU)
	$(BIN)/lora-sft quickstart

test: check ## run the checks, then the short tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) -m "not gpu and not slow"

test-all: check ## run the checks, then all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) -m "not gpu"

check: $(VENV)/.dev ## check the format, the types and the import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## format the code and fix simple faults
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## run the CPU benchmarks (15 minutes) and write their page
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.tables

snapshot: $(VENV)/.dev ## update the snapshot of library fields (after an upgrade)
	$(BIN)/python tools/snapshot_library_fields.py
	$(MAKE) reference

reference: $(VENV)/.dev ## update recipes/REFERENCE.md and the table in recipes/README.md
	$(BIN)/python tools/write_recipe_reference.py

base: $(VENV)/.dev ## build the shipped base model from its seed and compare its SHA-256
	$(BIN)/python tools/build_tiny_base.py --check

wheel: $(VENV)/.dev ## build the wheel in dist/
	$(BIN)/python -m build --wheel

clean: ## remove built files and caches (trained runs stay)
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache

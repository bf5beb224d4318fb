# make bench · make test · make lint: each sets up .venv the first time, and runs.
# Options for the benches: make bench ARGS="--variant=int4 --model sd15"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: bench test lint help
help:
	@sed -n '1,2s/^# //p' Makefile

bench: $(STAMP)
	$(BIN)/pytest bench --benchmark-json=reports/latest/benchmark.json $(ARGS)

# A hundred processes of the tests import torch and diffusers: compiled once, not in each, whatever the environment says.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest tests --timeout=600 -n 2 --dist worksteal $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv resolves and installs in seconds what pip takes minutes for; it comes from the same index as the rest.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[bench,dev]'
	touch $@

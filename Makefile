# make bench · make test · make lint: each sets up .venv the first time, and runs.
# Options for the benches: make bench ARGS="--variant=int4 --model sd15"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: bench test lint reference gpu gpu-wheels help
help:
	@sed -n '1,2s/^# //p' Makefile

bench: $(STAMP)
	$(BIN)/pytest bench --benchmark-json=reports/latest/benchmark.json $(ARGS)

# A hundred processes of the tests import torch and diffusers: compiled once, not in each, whatever the environment says.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest tests --timeout=600 -n 2 --dist worksteal $(ARGS)

# What README shows: the run, its table, and the picture of its page.
reference: $(STAMP)
	rm -rf build/reference
	$(BIN)/pytest bench --output build/reference $(ARGS)
	$(BIN)/python -m bench.reference

# All that a machine with a GPU can tell, in stages that resume (docs/contributing-a-machine.md); GPU=interpret rehearses.
gpu: $(STAMP)
	$(BIN)/python -m bench.gpu $(ARGS)

# What set-up fetches, into wheels/: with it a machine without a network can `make gpu`. For the same Python and system.
gpu-wheels:
	$(PYTHON) -m pip download --dest wheels --constraint constraints.txt uv hatchling editables '.[bench,dev,peers]'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

WHEELS := $(if $(wildcard wheels),--no-index --find-links $(CURDIR)/wheels)

# uv resolves and installs in seconds what pip takes minutes for; it comes from the same index as the rest.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(WHEELS) --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet $(WHEELS) --python $(BIN)/python --constraint constraints.txt --editable '.[bench,dev]'
	touch $@

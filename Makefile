# Each target makes its own virtual environment first; run it again and only the work is done.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One thread a process: the tests run two notebooks at a time on two cores.
QUIET  := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1

.PHONY: help demo test test-all docs-in-sync lab clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.train  ## The whole road once: data in, a better model out
	$(BIN)/actionstudio demo

test: $(VENV)/.dev  ## Notebooks, tests, and everything that must be in sync
	$(BIN)/python tools/in_sync.py
	$(BIN)/ruff check .
	$(QUIET) $(BIN)/nbdev_test --n_workers 2 --timing
	$(QUIET) $(BIN)/python -m pytest -q -m 'not slow'

test-all: test  ## The same, and the slow tests: browsers, kills, Ray, whole runs
	$(BIN)/python -m pip install -q -e '.[train,dev,ray,serving,app]'
	$(BIN)/python -m pytest -q -m slow

lab: $(VENV)/.dev  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

clean:  ## Remove what these targets made, the environment included
	rm -rf $(VENV) out build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), expected Python 3.11 or newer; name one with make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: settings.ini setup.py pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[train]'
	@touch $@

$(VENV)/.dev: settings.ini setup.py pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[train,dev,app]'
	@touch $@ $(VENV)/.train

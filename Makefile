# FedSparsify's commands; "make" alone lists them.

PYTHON ?= python3
# Files are shared out to a process a core, in order: the one that waits for other processes comes early.
PYTEST_ARGS ?= -q -n auto --dist loadfile --no-loadscope-reorder
DEMO_CONFIG ?= configs/fashion-mnist/demo.toml
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Bytecode is compiled at first import: PyTorch has thousands of files that no run imports.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
NATIVE := $(wildcard setup.py src/fedsparsify/sparse/*.cpp src/fedsparsify/sparse/*.hpp src/fedsparsify/sparse/*.inc)
INSTALLED_FROM := pyproject.toml constraints.txt $(NATIVE)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup data demo test lint report constraints clean

help: ## List these targets
	@echo "Usage: make TARGET [PYTHON=python3.12] [PYTEST_ARGS='-q -n 2'] [DEMO_ARGS='--set run.rounds=5']"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-15s%s\n", $$1, $$2 }'

setup: $(VENV)/dev.stamp ## Create .venv with the package and all that its tests need

data: ## Get FashionMNIST: from the system, else from its Debian package, else leave it to the loader
	@scripts/get_data.sh

demo: $(VENV)/run.stamp data ## Train 10 clients on FashionMNIST to 95% sparsity, and write a report
	@$(BIN)/fedsparsify run $(DEMO_CONFIG) $$([ -d data/fashion-mnist ] && echo --data-dir data) $(DEMO_ARGS)

test: lint ## Check style and types, then run all tests
	@$(WITH_DATA) $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup ## Check style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

report: $(VENV)/run.stamp ## Write one report over all runs in runs/
	@$(BIN)/fedsparsify report runs/*/

constraints: ## Pin what pip resolves today into constraints.txt (TORCH=2.x.y chooses PyTorch)
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" scripts/pin.sh

clean: ## Remove the virtual environment and everything built, but no data and no run
	rm -rf $(VENV) build dist src/*.egg-info src/fedsparsify/sparse/_native*.so
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo installs only what a run needs. Build requirements go into the environment itself, where constraints.txt
# pins them; pip would not pin them in an isolated build.
$(VENV)/run.stamp: $(INSTALLED_FROM)
	@[ -x $(BIN)/pip ] || command -v "$(PYTHON)" >/dev/null || { \
	    echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one with: make PYTHON=..." >&2; exit 1; }
	@[ -x $(BIN)/pip ] || "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FedSparsify needs Python \
	3.11 or newer, but $(PYTHON) is %d.%d: name a newer one with: make PYTHON=..." % sys.version_info[:2])'
	@[ -x $(BIN)/pip ] || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing FedSparsify into $(VENV) (a minute or two)"
	@$(PIP_INSTALL) setuptools pybind11
	@$(PIP_INSTALL) --no-build-isolation -e .
	@touch $@

# Installed already, so pip adds the extra's packages and compiles nothing again.
$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "Installing what the tests need"
	@$(PIP_INSTALL) 'fedsparsify[dev]'
	@touch $@

# Evaluated when the recipe runs, because the data may have been fetched a moment ago.
WITH_DATA = if [ -z "$$FEDSPARSIFY_DATA" ] && [ -d data/fashion-mnist ]; then export FEDSPARSIFY_DATA="$(CURDIR)/data"; fi;

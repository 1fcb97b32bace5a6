# The project's verbs. `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= --out runs/demo

.PHONY: help setup demo test test-all lint types format clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/ready ## make .venv with the pinned versions

$(VENV)/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11 to 3.13 is needed; name one with make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## the whole pipeline on the embedded digits, with a report
	$(BIN)/ard demo $(DEMO)

test: setup ## the quick tests, in two processes
	$(BIN)/pytest --numprocesses 2 -m "not slow"

test-all: setup ## every test
	$(BIN)/pytest --numprocesses 2

lint: setup ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## the strict type checker on the package
	$(BIN)/mypy

format: setup ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## delete the environment and the caches, not the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

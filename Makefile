# The project's verbs. `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= --out runs/demo

.PHONY: help setup demo test test-all fuzz extras help-texts lint types format clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

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

fuzz: setup ## damage what the commands read and kill them, thousands of times; FUZZ="--kinds json --cases 100"
	$(BIN)/python -W ignore tests/fuzz $(FUZZ)

extras: setup ## every extra in an environment of its own, which has nothing else
	$(BIN)/python -W ignore tests/check_extras.py

lint: setup ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## the strict type checker on the package
	$(BIN)/mypy

help-texts: setup ## renew what the commands' --help prints, after a change of options
	$(BIN)/python tests/write_help.py

format: setup ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## delete the environment and the caches, not the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# The one list of tasks: people, hooks and CI all use these.
# PYTHON is an interpreter in which `pip install '.[dev]'` was done.
PYTHON ?= python
BIN = $(dir $(shell command -v $(PYTHON)))

.PHONY: check format lint types imports test build

check: lint types imports test

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

imports:
	$(BIN)lint-imports

test:
	$(PYTHON) -m pytest

build:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

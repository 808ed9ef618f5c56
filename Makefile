# `make check` is the one check: format, lint, strict types, tests.
PYTHON ?= python

.PHONY: check format lint types test help

check: lint types test  ## everything a change must pass

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 10

format:  ## rewrite files in the house format
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:  ## format and lint, changing nothing
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:  ## strict types
	$(PYTHON) -m mypy

test:  ## the suite
	$(PYTHON) -m pytest

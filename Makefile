# `make check` is the one check: format, lint, strict types, tests.
PYTHON ?= python

.PHONY: check format lint types test test-slow test-portable help

check: lint types test  ## everything a change must pass

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 15

format:  ## rewrite files in the house format
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:  ## format, lint and who imports whom, changing nothing
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as check; check()" --no-logo --no-cache

types:  ## strict types
	$(PYTHON) -m mypy

test:  ## the suite
	$(PYTHON) -m pytest

test-slow:  ## long series of what the suite shows once
	$(PYTHON) -m pytest -m slow

# PyTorch and MKL add in another order on each kind of processor; a tolerance must hold on all.
test-portable:  ## the numeric tests as AVX2 and as plain SSE compute them
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(PYTHON) -m pytest -m "numeric and not slow" tests/machine tests/model tests/init tests/modules tests/sampling tests/training
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(PYTHON) -m pytest -m "numeric and not slow" tests/machine tests/model tests/init tests/modules tests/sampling tests/training

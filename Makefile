# The commands of the README. A second call reuses .venv.
PYTHON ?= python3
BIN := .venv/bin

# A run folder is never overwritten: a second demo gets a name of its own.
NEW_NAME = $(if $(wildcard runs/prism_digits),--run_dir runs/prism_digits-$(shell date +%Y%m%d-%H%M%S))

.PHONY: demo test test-all benchmark lint types clean

demo: .venv/.installed
	$(BIN)/flgen fit --config configs/prism_digits.yaml $(NEW_NAME)

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not benchmark"

benchmark: .venv/.installed-dev
	$(BIN)/python -m pytest -m benchmark tests/benchmarks -s

lint: .venv/.installed-dev
	$(BIN)/ruff check flgen tests
	$(BIN)/ruff format --check flgen tests

types: .venv/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ .venv/.installed

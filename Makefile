# The commands of the README. A second call reuses .venv.
PYTHON ?= python3
BIN := .venv/bin

# A run folder is never overwritten: a second demo gets a name of its own.
NEW_NAME = $(if $(wildcard runs/prism_digits),--run_dir runs/prism_digits-$(shell date +%Y%m%d-%H%M%S))

# Debian's packages that `make test-system` needs, as root: apt-get install -y --no-install-recommends $(SYSTEM_PACKAGES)
SYSTEM_PACKAGES = slurm-wlm munge iproute2 chromium chromium-driver

.PHONY: demo test test-system test-all benchmark docs lint types clean system-packages

demo: .venv/.installed
	$(BIN)/flgen fit --config configs/prism_digits.yaml $(NEW_NAME)

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-system: .venv/.installed-dev .venv-sweeps/.installed
	$(BIN)/python -m pytest -m "system and not long"

test-all: .venv/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not benchmark and not system"
	$(MAKE) test-system

system-packages:
	@echo $(SYSTEM_PACKAGES)

benchmark: .venv/.installed-dev
	$(BIN)/python -m pytest -m benchmark tests/benchmarks -s

docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/.installed-dev
	$(BIN)/ruff check flgen tests docs_site
	$(BIN)/ruff format --check flgen tests docs_site

types: .venv/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-sweeps site

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ .venv/.installed

# The package with W&B's schema of sweep files holds numpy below 2: it gets an environment of its own.
.venv-sweeps/.installed: Makefile
	$(PYTHON) -m venv .venv-sweeps
	.venv-sweeps/bin/python -m pip install --quiet "wandb[sweeps]" || .venv-sweeps/bin/python -m pip install --quiet sweeps
	@touch $@

# make demo   train the tiny model from real documents and a guard, and chat with both (an hour and a half where bf16 is slow)
# make test   everything that must hold before a commit
# make help   the rest

PYTHON ?= python3

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo install test lint types unit slow gpu oracle constraints clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## train the tiny model, then a guard, and chat with both
	$(BIN)/herd data fetch
	$(BIN)/herd run tiny
	$(BIN)/herd run guard
	@echo "The reports: $(CURDIR)/runs/tiny/report/report.html and $(CURDIR)/runs/guard/report/report.html"
	@chat="$(BIN)/herd chat runs/tiny/sft --guard runs/guard/guard"; \
	if [ -t 0 ] && [ -t 1 ]; then $$chat; else echo "Talk to it:  $$chat"; fi

install: $(VENV)/.dev  ## the virtual environment with everything for development

test: lint types unit  ## lint, types, imports and the fast tests

lint: $(VENV)/.dev  ## style and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev  ## mypy
	$(BIN)/mypy

unit: $(VENV)/.dev  ## the fast tests, in two processes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist worksteal

slow: $(VENV)/.dev  ## the proofs that take minutes
	$(BIN)/pytest -m slow

gpu:  ## on a machine with a CUDA card: check it against the CPU and measure it, as JSON (minutes)
	$(PYTHON) -m herd bench gpu --json

oracle:  ## an environment with torchvision, for the slow test of transformers' processor (5.5 GB)
	$(PYTHON) -m venv .venv-oracle
	.venv-oracle/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 transformers==5.23.0 pillow

constraints: $(VENV)/.dev  ## write constraints.txt from what is installed
	@sed -n '/^#/p' constraints.txt > constraints.new
	@$(PIP) freeze --exclude-editable | sed 's/+cpu$$//' >> constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove the environment and the caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache build dist

# The stamps: an install is repeated only when what it reads has changed.

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Herd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		     "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -e '.[data,serve,video]' -c constraints.txt
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet -e '.[data,documents,serve,video,oracle,dev]' -c constraints.txt
	@touch $@ $(VENV)/.demo

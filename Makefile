PYTHON ?= python3
ARGS ?=

VENV := .venv
LOWER := .venv-lower
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check
BENCHMARKS = $(filter-out zoo long steps __init__,$(basename $(notdir $(wildcard benchmarks/*.py))))
PYTEST := -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not zoo"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-archs lint format docs notebooks bench zoo lower-bounds check-install clean

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(VENV)/.installed  ## the environment .venv with everything in it, once

$(VENV)/.installed: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install --editable '.[dev]'
	@touch $@

demo: install  ## the main job on real digits: trains, prints the table, writes the pictures
	$(BIN)/python -m fastai_heads demo $(ARGS)

test: lint  ## the linter and every test (ARGS='-k heads' for some)
	$(BIN)/python $(PYTEST) $(ARGS)

test-archs: install  ## the smallest arch of each family as it is, which `make test` shrinks where it is large
	$(BIN)/python $(PYTEST) -m zoo tests/archs $(ARGS)

lint: install  ## what the linter and the formatter object to
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: install  ## mend what the linter and the formatter can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: install  ## the site, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

notebooks: install  ## run every notebook in full and keep its outputs
	$(BIN)/python .ci/run_notebooks.py $(wildcard nbs/*.ipynb)

bench: install  ## the benchmarks: ratios, each measured in one run
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

zoo: install  ## check every arch of every zoo: hours, resumed where it stopped (ARGS='resnet* --jobs 4')
	$(BIN)/python -m benchmarks.zoo --table docs/archs.md $(ARGS)

lower-bounds: $(LOWER)/.installed  ## every test with the oldest versions that setup.cfg allows, in .venv-lower
	$(LOWER)/bin/python $(PYTEST) $(ARGS)

$(LOWER)/.installed: setup.cfg .ci/lower_bounds.py
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python .ci/lower_bounds.py > $(LOWER)/constraints.txt
	$(LOWER)/bin/python $(PIP) install --editable '.[test]' --constraint $(LOWER)/constraints.txt
	@touch $@

check-install: install  ## the wheel works from another folder, without this one
	.ci/check_install $(BIN)/python

clean:  ## the environments and what was built
	rm -rf $(VENV) $(LOWER) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

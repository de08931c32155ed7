# make smoke       build, train, evaluate and export a tiny model on the CPU: the proof that this machine can run the project
# make test        the tests that take seconds each          make test-slow   those that take longer
# make lint        ruff, mypy, shellcheck                    make clean       remove .venv and every cache (never runs/)
#
# Everything happens in .venv, which is built once and again whenever pyproject.toml or constraints.txt change.
# Another interpreter: make PYTHON=python3.12 smoke

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamp's name holds a checksum of what was asked for: equal content, nothing to do.
STAMP = $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | tr -s ' ' '-')
SCRIPTS := slurm/*.sh .ci/run

# DeepSpeed must not compile its operators at installation; it builds what it needs at first use.
export DS_BUILD_OPS := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup smoke test test-slow lint clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) -V) (once; a few GB of packages, some minutes; full log in $(VENV)/install.log)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -m pip install --no-input --progress-bar off -c constraints.txt -e ".[test,lint]" 2>&1 \
	  | tee $(VENV)/install.log | grep -E --line-buffered '^ *(Collecting|Building|Installing|Successfully installed|ERROR|error)' | cut -c1-120
	@touch $@

smoke: $(STAMP)
	$(BIN)/unisphere smoke

test: $(STAMP)
	$(BIN)/python -m pytest -q

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SCRIPTS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

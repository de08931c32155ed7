# make smoke       build, train, evaluate and export a tiny model on the CPU: the proof that this machine can run the project
# make test        the tests that take seconds each          make test-slow   those that take longer
# make test-slurm  the tests on a real Slurm cluster of several hosts, made on this machine (root, Debian or Ubuntu)
# make chaos       a training whose ranks are killed, signalled and starved of disk 50 times at random: nothing may change
# make lint        ruff, mypy, shellcheck                    make clean       remove .venv* and every cache (never runs/)
# make peers       build .venv-peers: other projects' tools, which benchmarks and tests run as outside judges
# make bench-gpu   the loss on a GPU: time, memory, TFLOP/s, exactness
#
# Everything happens in .venv, which is built once and again whenever pyproject.toml or constraints.txt change.
# Another interpreter: make PYTHON=python3.12 smoke
# .venv-peers holds benchmarks/peers.txt only and sees everything else in .venv. Beside another environment than .venv,
# which must have what constraints.txt pins: make peers VENV=PATH

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamp's name holds a checksum of what was asked for: equal content, nothing to do.
STAMP = $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | tr -s ' ' '-')
PEERS := .venv-peers
PEERS_STAMP = $(PEERS)/.installed-$(shell { cat benchmarks/peers.txt; echo $(abspath $(VENV)); } | cksum | tr -s ' ' '-')
SCRIPTS := slurm/*.sh tests/slurm/recorded/*.sh .ci/run

# DeepSpeed must not compile its operators at installation; it builds what it needs at first use.
export DS_BUILD_OPS := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup smoke test test-slow chaos test-slurm lint peers bench-gpu clean

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

# Side by side, with one thread each: many tests wait for processes of their own.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-slow: $(STAMP) $(PEERS_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and not slurm"

# Slurm's daemons come from Debian's packages. Elsewhere, or without root, the tests say why they skip.
SLURM_TESTS := slurm
SLURM_PACKAGES := slurmctld slurmd slurm-client munge iproute2 procps util-linux hostname
test-slurm: $(STAMP)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $(SLURM_PACKAGES) >/dev/null 2>&1; then \
	  echo "installing $(SLURM_PACKAGES)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM_PACKAGES) >/dev/null \
	  || echo "could not be installed: the tests will say what is missing"; fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "$(SLURM_TESTS)" tests/slurm

chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --rounds $(or $(ROUNDS),50)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SCRIPTS)

peers: $(PEERS_STAMP)

# Nothing is installed that is not pinned in peers.txt (--no-deps), and what .venv has already is read from there: the .pth
# file appends its packages behind the peers' own, which therefore win.
$(PEERS_STAMP): | $(if $(wildcard $(BIN)/python),,$(STAMP))
	@echo "setting up $(PEERS) beside $(VENV) (full log in $(PEERS)/install.log)"
	@$(BIN)/python -m venv $(PEERS)
	@rm -f $(PEERS)/.installed-*
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main_environment.pth"
	@$(PEERS)/bin/python -m pip install --no-input --progress-bar off --no-deps -r benchmarks/peers.txt 2>&1 \
	  | tee $(PEERS)/install.log | { grep -E --line-buffered '^ *(Collecting|Building|Installing|Successfully installed|ERROR|error)' || true; } | cut -c1-120
	@touch $@

bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/objective_gpu.py

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

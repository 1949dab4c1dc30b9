# Every target in one line; `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
export PATH := $(abspath $(BIN)):$(PATH)
export VIRTUAL_ENV := $(abspath $(VENV))
export DVC_NO_ANALYTICS := 1
# Without compiled modules every command would compile PyTorch and its kin anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup assets demo test check types-links wheel-test bench lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.ready: requirements.lock bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: expected Python 3.11 or later, got $$($(PYTHON) --version 2>&1); choose one with make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: this Python cannot make virtual environments; on Debian: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.lock
	@$(UV) pip install --quiet --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(VENV)/.ready ## make .venv with the locked versions, hashes checked

assets: setup ## fetch the demo's weights and pictures into a cache outside the repository
	@devil-pipe assets

demo: assets ## everything from pictures to the page: fetch, dvc repro, print where the report lies
	@dvc repro --quiet || { echo "error: the demo stopped; \`make demo\` again goes on where it was"; exit 1; }
	@echo "report: $(CURDIR)/runs/demo/report/index.html"

test: setup ## run the tests (those on real weights and pictures fetch them first)
	@devil-pipe --quiet assets || echo "the assets cannot be had here: tests that need them are skipped and say so"
	@pytest

check: setup types-links ## lint, formatting, types, direction of imports
	@ruff check .
	@ruff format --check .
	@mypy pipeline stages store
	@lint-imports

types-links: ## link the three rooms under the name devil_pipe, for mypy
	@mkdir -p .types/devil_pipe
	@for room in pipeline stages store; do ln -sfn ../../$$room .types/devil_pipe/$$room; done

wheel-test: setup ## build the wheel, install it into an empty environment, run the tests against it from another folder
	@bash tests/wheel.sh $(UV)

bench: setup ## run the benchmarks; results go to benchmarks/results/
	@for file in benchmarks/[a-z]*.py; do python $$file || exit 1; done

lock: ## resolve requirements.lock and bootstrap.lock anew
	@$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --universal --python-version 3.11 --extra dev \
	  --upgrade --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock
	@echo uv | $(UV) pip compile --quiet --generate-hashes --no-emit-index-url --universal --python-version 3.11 \
	  --upgrade --custom-compile-command "make lock" - --output-file bootstrap.lock

clean: ## remove what was built and trained (the asset cache stays)
	@rm -rf build dist data stores runs .types .mypy_cache .ruff_cache .pytest_cache *.egg-info

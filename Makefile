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
# Tests in a process for each core, a file always in one of them; each loads PyTorch and has models of its own in memory.
export PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile
# Without compiled modules every command would compile PyTorch and its kin anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup assets demo test check docs types-links wheel-test bench lowest newest licences audit-deps release-check fuzz lock clean

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
	@OMP_NUM_THREADS=1 pytest $(PARALLEL)

check: setup types-links ## lint, formatting, types, direction of imports
	@ruff check .
	@ruff format --check .
	@mypy pipeline stages store
	@lint-imports

docs: setup types-links ## build the documentation into site/, every link checked; open site/index.html
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "documentation: $(CURDIR)/site/index.html"

types-links: ## link the three rooms under the name devil_pipe, for mypy
	@mkdir -p .types/devil_pipe
	@for room in pipeline stages store; do ln -sfn ../../$$room .types/devil_pipe/$$room; done

wheel-test: setup ## build the wheel, install it into an empty environment, run the tests against it from another folder
	@bash tests/wheel.sh $(UV)

bench: setup ## run the benchmarks; results go to benchmarks/results/
	@for file in benchmarks/[a-z]*.py; do python $$file || exit 1; done

lowest: setup ## the oldest dependencies that pyproject.toml allows: resolve, install, import everything, test a part
	@bash tests/ends.sh lowest

newest: setup ## the same with today's newest dependencies, which may be newer than the lock
	@bash tests/ends.sh newest

licences: setup ## write docs/licences.md from the locked packages' own metadata
	@python tests/licences.py

audit-deps: setup ## ask for known vulnerabilities of the locked packages (needs the vulnerability service)
	@pip-audit --strict --requirement requirements.lock --disable-pip --progress-spinner off

release-check: setup ## build sdist and wheel into dist/, check both, and that the sdist makes the same wheel
	@bash tests/release.sh

fuzz: setup ## fuzz every reader of foreign bytes, each for SECONDS (20); what is found lies in .fuzz/findings/
	@python -m tests.fuzz.run --seconds $(or $(SECONDS),20) $(FUZZ)

lock: ## resolve requirements.lock and bootstrap.lock anew
	@$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --universal --python-version 3.11 --extra dev \
	  --upgrade --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock
	@echo uv | $(UV) pip compile --quiet --generate-hashes --no-emit-index-url --universal --python-version 3.11 \
	  --upgrade --custom-compile-command "make lock" - --output-file bootstrap.lock

clean: ## remove what was built and trained (the asset cache stays)
	@rm -rf build dist site data stores runs .types .mypy_cache .ruff_cache .pytest_cache *.egg-info

# `make demo` and `make test` set up what they need, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# OpenMP threads that spin while they wait make shared cores many times slower. Nothing but
# pip may use the network.
export OMP_WAIT_POLICY := PASSIVE
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1

.PHONY: help setup demo evidence chaos site test oldest browser gpu bench pin lint types check clean

help:
	@echo "make demo    images -> shards -> teacher -> label job on Ray -> student, in minutes"
	@echo "make evidence  students taught in many ways, compared in docs/EVIDENCE.md; takes hours"
	@echo "make site    the documentation as a web site, in site/index.html"
	@echo "make chaos   label jobs on Ray, killed at random for MINUTES=30; their bytes stay the same"
	@echo "make test    the whole test suite"
	@echo "make oldest  the same with the oldest versions that pyproject.toml allows, in .oldest"
	@echo "make browser  the tests that open reports in a headless Chromium"
	@echo "make gpu     the tests that run on a GPU, which CUDA must see"
	@echo "make check   lint, types and tests"
	@echo "make setup   the virtual environment in $(VENV), made with PYTHON=$(PYTHON)"
	@echo "make bench   all speeds; SHARDS='...' names photographs, JSON=FILE takes the ratios"
	@echo "make pin     the digest of the image's base, written into docker/Dockerfile"
	@echo "make clean   remove the demo's output, caches and build files, not $(VENV)"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is missing or older than 3.11; try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes, and 7 GB"
	@(while sleep 9; do echo "... installing"; done) & said=$$!; trap "kill $$said" EXIT; \
		$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

evidence: $(INSTALLED)
	@test -n "$(TEACHER)" && test -n "$(if $(VAL_SHARDS),$(SHARDS),$(DOWNLOAD))" || { \
		echo "give a teacher of CIFAR-10's classes, and shards or a place to fetch the images to:"; \
		echo "make evidence TEACHER=x.safetensors SHARDS='train-*.tar' VAL_SHARDS='val-*.tar'"; \
		echo "make evidence TEACHER=x.safetensors DOWNLOAD=cifar10"; exit 1; }
	$(BIN)/python examples/cifar10/run.py --teacher-checkpoint '$(TEACHER)' \
		$(if $(DOWNLOAD),--download '$(DOWNLOAD)',--shards '$(SHARDS)' --val-shards '$(VAL_SHARDS)') \
		--report docs/EVIDENCE.md $(ARGS)

# Loads the machine for as long as it takes.
chaos: $(INSTALLED)
	$(BIN)/python -m tests.crash.chaos --minutes $(or $(MINUTES),30) \
		--report '$(or $(REPORT),chaos-report.md)' $(ARGS)

site: $(INSTALLED)
	$(BIN)/python docs/commands.py
	$(BIN)/zensical build --strict

# Three processes for two cores, since the one with the label jobs often waits. A file stays in one
# process, with its fixtures; tests/conftest.py says which begin first.
test: $(INSTALLED)
	@echo "left out here: tests of pages in a browser (make browser), and on a GPU (make gpu)"
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What only tests need is as new as it can be.
oldest:
	$(PYTHON) -m venv .oldest
	.oldest/bin/python -m pip install --quiet uv
	.oldest/bin/uv pip install --quiet --python .oldest/bin/python \
		--resolution lowest-direct -e '.[all]'
	.oldest/bin/uv pip install --quiet --python .oldest/bin/python -e '.[dev]'
	PATH="$$PWD/.oldest/bin:$$PATH" .oldest/bin/python -m pytest -n 3 --dist loadfile $(ARGS)

# Without a Chromium it fails, and says what to install.
browser: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -m browser tests/browser

# Without a GPU they fail, and say so.
gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu tests

bench: $(INSTALLED)
	@test -n "$(SHARDS)" || { echo "give photographs: make bench SHARDS='/data/x-{000..003}.tar'"; exit 1; }
	$(BIN)/python -m benchmarks --shards '$(SHARDS)' $(if $(JSON),--json '$(JSON)')

pin:
	$(PYTHON) docker/pin.py $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf demo-output build site .cache *.egg-info
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

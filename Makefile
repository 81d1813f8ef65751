# The two commands of the README, and a few beside them. `make` alone lists them.
#
#   PYTHON=python3.12   the interpreter that .venv is made with
#   VENV=FOLDER         another place for the environment
#   PRESET=smoke        another preset of config/presets (default: nano)
#   CORES=2             cores for snakemake (default: all)
#   PINS=cuda           constraints/cuda.txt instead of constraints/cpu.txt
#   TORCH_INDEX=URL     take torch from this package index (docs/install.md)
#   JOBS=2              processes for pytest
#   RESULTS=FOLDER      a results folder or a snapshot, for tables, figures, claims, report (default: results/PRESET)
#   KEYS="run=main"     config keys, for snakemake (reproduce, resume), as in KEYS='run=[main, ablation] pack=3'
#   ARGS="-n"           more arguments for snakemake (reproduce), pytest (test, test-all) or the mutants' script

PYTHON ?= python3
PRESET ?= nano
CORES ?= all
PINS ?= cpu
TORCH_INDEX ?=
RESULTS ?=
KEYS ?=
ARGS ?=
JOBS ?= 2

VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(PINS)
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Steps find the environment's own metatuner and snakemake.
export PATH := $(abspath $(BIN)):$(PATH)

# What a user gives is text: neither make nor a shell expands it. Recipes find it in the environment.
override PRESET := $(value PRESET)
override CORES := $(value CORES)
override JOBS := $(value JOBS)
override KEYS := $(value KEYS)
override ARGS := $(value ARGS)
override TORCH_INDEX := $(value TORCH_INDEX)
override RESULTS := $(if $(value RESULTS),$(value RESULTS),results/$(PRESET))
export PRESET CORES JOBS KEYS ARGS TORCH_INDEX RESULTS

# Puts them where {NAME} stands, and starts the program without a shell.
WITH := $(BIN)/python workflow/words.py

.DEFAULT_GOAL := help
.PHONY: help install reproduce resume tables figures claims report verify compare snapshot test test-all mutants lint docs pins clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /make \1\t/' | expand -t 18

$(INSTALLED): pyproject.toml constraints/$(PINS).txt $(wildcard constraints/*.txt)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON): not found; install Python >= 3.11 or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is `$(PYTHON) -V`, but >= 3.11 is needed; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install -q --no-deps --index-url "$$TORCH_INDEX" "$$(grep '^torch==' constraints/cpu.txt)")
	$(PIP) install -q -c constraints/$(PINS).txt -e '.[test]'
	@rm -f $(VENV)/.installed* && touch $@

install: $(INSTALLED) ## make the environment, pinned; the targets below do it when needed

reproduce: $(INSTALLED) ## run the whole benchmark: models, methods, tables, figures (snakemake --cores all)
	@$(WITH) snakemake --cores {CORES} {ARGS} --config preset={PRESET} {KEYS}

resume: $(INSTALLED) ## take up an interrupted run
	@$(WITH) metatuner resume --cores {CORES} preset={PRESET} {KEYS}

tables figures claims report: $(INSTALLED)
	@$(WITH) metatuner $(DRAW_$@) --config {RESULTS}/config.json

DRAW_tables := table --name all
DRAW_figures := figure --name all
DRAW_claims := claims
DRAW_report := report

tables: ## make tables again from the files of RESULTS
figures: ## make figures again from the files of RESULTS
claims: ## judge the paper's claims again from the files of RESULTS
report: ## write report.html again from the files of RESULTS

verify: $(INSTALLED) ## compare the stored files of RESULTS with their digests; fails where they differ
	@$(WITH) metatuner verify --config {RESULTS}/config.json

compare: $(INSTALLED) ## compare a finished run with the committed snapshot; fails where they differ
	@$(WITH) metatuner diff results/snapshot/{PRESET} {RESULTS} --fail-on-difference

snapshot: $(INSTALLED) ## keep a finished run of PRESET in results/snapshot/, to be committed
	@$(WITH) metatuner snapshot --config results/{PRESET}/config.json

# Tests that share a long fixture run in one process (tests/conftest.py).
PYTEST = $(WITH) python -m pytest -n {JOBS} --dist loadscope --no-loadscope-reorder

test: $(INSTALLED) ## run the tests, but for the slow ones
	@$(PYTEST) -m "not slow" {ARGS}

test-all: $(INSTALLED) ## run all tests
	@$(PYTEST) {ARGS}

mutants: $(INSTALLED) ## make listed changes to the code one at a time; print those that no test notices
	@$(WITH) python tests/mutants/run.py --jobs {JOBS} {ARGS}

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy

docs: $(INSTALLED) ## build the documentation site in site/; fails on a broken link
	$(PIP) install -q -c constraints/$(PINS).txt -e '.[docs]'
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pins: ## copy the pins of constraints/cpu.txt into envs/metatuner.yaml
	sed -i.old '/==/d' envs/metatuner.yaml && rm envs/metatuner.yaml.old
	sed -n 's/^[a-z].*==.*/      - &/p' constraints/cpu.txt >> envs/metatuner.yaml

clean: ## remove the environment and caches; results/ stays
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache

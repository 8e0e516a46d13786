# recloop: from a clean clone to a running demo or test with Python 3.11+, pip and make.
# The first run makes .venv and installs; later runs install nothing and need no network (stamp files in .venv).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

.DELETE_ON_ERROR:
.PHONY: help demo demo-quick bench-quality bench-serve bench-ingest bench-collect test test-demo test-all check pictures format clean

help:
	@echo "make demo           the whole loop on a grocery chain's year"
	@echo "make demo-quick     the loop once on a small simulated shop, without torch (under a minute)"
	@echo "make bench-quality  the models of each data set, docs/benchmarks.md (hours, resumable)"
	@echo "make bench-collect  prepare against hand-written Polars and DuckDB queries (about 20 minutes)"
	@echo "make bench-serve    lists per second against a typical service, up to 1 M items (minutes, resumable)"
	@echo "make bench-ingest   durable events per second beside bare SQLite inserts (minutes)"
	@echo "make faults         kills, power cuts and broken writes at full size (hours); benchmarks/results/faults.json"
	@echo "make test           the fast tests"
	@echo "make test-demo      both demos of the seeded world, the console in a browser, restarts of services (about 5 minutes)"
	@echo "make test-all       all tests: the slow ones too, and those on the data sets in ../shared/data"
	@echo "make check          format, lint, types, import contracts, anchors, docs executed"

demo: $(VENV)/.demo
	$(BIN)/recloop demo

demo-quick: $(VENV)/.quick
	$(BIN)/recloop demo --quick

bench-quality: $(VENV)/.demo
	$(BIN)/python benchmarks/quality.py

bench-collect: $(VENV)/.test
	$(BIN)/python benchmarks/collect.py

bench-serve: $(VENV)/.test
	$(BIN)/python benchmarks/serve.py

bench-ingest: $(VENV)/.test
	$(BIN)/python benchmarks/ingest.py

# SHARE=0.1 runs a tenth of the full size.
SHARE ?= 1
faults: $(VENV)/.test
	RECLOOP_FAULTS=$(SHARE) $(BIN)/python -m pytest -n 0 --timeout 14400 tests/faults tests/postgres/test_outages.py

# The fast tests; docs, style, the command line, import contracts and the anchors run in `make check`.
IN_CHECK := tests/test_docs.py tests/test_reference.py tests/test_interface.py tests/test_imports.py tests/test_cli.py \
  tests/test_bad_input.py tests/test_style.py tests/evaluation/test_anchor.py

# Tests that start and restart many services; they run in `make test-demo`.
OF_SERVICES := tests/client tests/deploy tests/faults tests/postgres $(addprefix tests/privacy/test_,canary.py forget.py) \
  $(addprefix tests/serve/test_,config_reload.py disk.py hanging_parts.py identify_property.py reload.py socket_activation.py)

test: $(VENV)/.test
	$(PYTEST) -m "not slow and not data" $(addprefix --ignore=,$(IN_CHECK) $(OF_SERVICES))

test-demo: $(VENV)/.test
	$(BIN)/python -m pytest -m slow tests/demo/test_quick.py tests/demo/test_simulated.py tests/serve/test_console.py
	$(PYTEST) -m "not slow" $(OF_SERVICES)

test-all: $(VENV)/.test
	$(PYTEST) --timeout 3600

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(IN_CHECK)

# The pictures of the docs, taken again (needs Debian's chromium); a test run leaves them as they are.
pictures: $(VENV)/.test
	$(BIN)/python benchmarks/plot_cost.py
	$(BIN)/python benchmarks/learning_curves.py
	RECLOOP_PICTURES=docs/img $(BIN)/python -m pytest tests/serve/test_console.py -k light

format: $(VENV)/.test
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate.py --write

clean:
	rm -rf $(VENV) recloop-demo recloop-quick .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: PYTHON=$(PYTHON): expected Python 3.11 or newer; try: make PYTHON=python3.12"; exit 2; }
	@# Debian keeps ensurepip in a package of its own: without it, pip installs itself into the bare environment.
	$(PYTHON) -m venv $(VENV) 2>/dev/null || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(VENV)/bin/python install pip; }

$(VENV)/.quick: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[train,demo,console]'
	@touch $@ $(VENV)/.quick

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[train,demo,console,postgres,tune,dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.quick

# The commands of this project. Everything is installed into .venv, from nothing but Python >= 3.11 and pip.

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
STAMP := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help env demo demo-check test parity check format doctest notebooks docs bench wheel-test clean-env

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

env: $(STAMP) ## create .venv with the package and its tools

# Made anew when pyproject.toml changes. Debian splits ensurepip from Python: there, the machine's own pip fills .venv.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxplain needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V); try: make env PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv 2>/dev/null || \
	  { rm -rf .venv && $(PYTHON) -m venv --without-pip .venv && \
	    $(PYTHON) -m pip --python $(BIN)/python install -qq 'pip>=25.1'; }
	@echo "Installing jaxplain into .venv (a few minutes, once)"
	@$(BIN)/python -m pip install -qq --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -qq --editable . --group dev
	@# An NNX ResNet for the tests of the adapters. It asks for torch, which its networks do not use.
	@$(BIN)/python -m pip install -qq --no-deps jaxnn==0.2.0
	@touch $@

demo: $(STAMP) ## explain held-out images with every method: demo/report.html
	@$(BIN)/jaxplain demo --out demo/report.html

demo-check: $(STAMP) ## look at demo/report.html in a browser
	@JAXPLAIN_REPORT=demo/report.html $(BIN)/python -m pytest -q tests/browser/test_demo.py

test: $(STAMP) ## run all tests and doctests
	@# Every worker, and every program that a test starts, reads the same modules: one compiles them.
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

parity: $(STAMP) ## compare every large network with torchvision, Captum, Zennit, TorchRay
	@JAXPLAIN_PARITY=all $(BIN)/python -m pytest -q -rsP tests/parity tests/models/test_parity.py \
	  tests/models/test_ports.py tests/models/test_structure.py

check: $(STAMP) ## formatting, lint and types
	@status=0; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/pyright || status=1; \
	exit $$status

format: $(STAMP) ## let ruff format and repair
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

doctest: $(STAMP) ## run the examples in the docstrings
	@$(BIN)/python -m pytest -q jaxplain

notebooks: $(STAMP) ## execute every notebook
	@for notebook in $(wildcard notebooks/*.ipynb); do \
	  PYTHONWARNINGS=ignore $(BIN)/jupyter execute --timeout=600 $$notebook || exit 1; \
	done

docs: $(STAMP) ## write the generated parts of README.md and docs/
	@$(BIN)/python docs/write.py

bench: $(STAMP) ## quick benchmarks, a line a figure
	@status=0; for script in benchmarks/*.py; do \
	  grep -q __main__ $$script || continue; \
	  $(BIN)/python $$script --quick || status=1; \
	done; exit $$status

wheel-test: $(STAMP) ## build the wheel, install it in a clean environment and use it
	@rm -rf dist .cache/wheel && mkdir -p .cache/wheel
	@$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist .
	@$(BIN)/python -m venv --without-pip .cache/wheel/venv
	@$(BIN)/python -m pip --python .cache/wheel/venv/bin/python install -qq dist/*.whl
	@cd .cache/wheel && venv/bin/python -c 'import jaxplain; print(jaxplain.__file__)' && \
	  venv/bin/jaxplain models

clean-env: ## remove .venv and the caches
	rm -rf .venv .cache dist

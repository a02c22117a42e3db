# One environment for everything. PIP_ARGS passes an index, e.g. of CPU builds of PyTorch.
PYTHON ?= python3.11
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow test-browser lint clean

demo: $(STAMP)
	$(BIN)/veilmark demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-browser: $(STAMP)
	$(BIN)/pip install $(PIP_ARGS) -q -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -m browser

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_ARGS) -q -c constraints.txt torch
	$(BIN)/pip install $(PIP_ARGS) -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

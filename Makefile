# make install | demo | test | check | test-all | clean        needs Python 3.11 or newer, nothing else

# The first of these that is new enough, or the one given: make PYTHON=/path/to/python3.12
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help install demo test check test-all clean

help:
	@echo "make install   set up $(VENV) with everything"
	@echo "make demo      install, then show the main job on a private PostgreSQL"
	@echo "make test      install, then the default tests"
	@echo "make check     install, then lint, format and types"
	@echo "make test-all  install, then every test, the slow ones too"
	@echo "make clean     remove $(VENV), build results and caches"

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/embedworker demo

test: $(STAMP)
	$(BIN)/pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

test-all: $(STAMP)
	$(BIN)/pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "embedworker needs Python 3.11 or newer and found: $$(python3 --version 2>&1)."; \
		echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "embedworker needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" --version 2>&1)."; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(STAMP): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

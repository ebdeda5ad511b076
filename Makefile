# make install | demo | test | test-compat | check | format | docs | test-all | lock | clean
# needs Python 3.11 or newer, nothing else

# The index that has the build of torch you want, for example the one without CUDA; the address is on
# PyTorch's installation page: make install TORCH_INDEX=https://…
TORCH_INDEX ?=

# The first of these that is new enough, or the one given: make PYTHON=/path/to/python3.12
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# What was tested, by hash; torch alone goes by version, because each of its builds has other files.
LOCK := requirements/dev.txt
PIP_COMPILE = CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/lock/bin/pip-compile --quiet --generate-hashes \
	--strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	--unsafe-package torch --unsafe-package embedworker --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-compat check format docs test-all lock clean

# What depends on the version of PostgreSQL. More of it: make test-compat COMPAT="sweep restore"
COMPAT ?= alembic capture ddl doctor enable loopback migrate query roles search standby status sweep_sql
COMPAT_TESTS := $(COMPAT:%=tests/integration/test_%.py)
COMPAT_FOLDER ?= build

help:
	@echo "make install   set up $(VENV) with everything"
	@echo "make demo      install, then show the main job on a private PostgreSQL"
	@echo "make test      install, then the default tests"
	@echo "make test-compat  install, then the tests of SQL on PostgreSQL 15 and 17 of Debian"
	@echo "make check     install, then lint, format and types"
	@echo "make format    install, then format the code and mend what ruff can"
	@echo "make docs      install, then write docs/reference.md from the code"
	@echo "make test-all  install, then every test, the slow ones too"
	@echo "make lock      pin the newest versions of all dependencies, with hashes; on Python 3.11"
	@echo "make clean     remove $(VENV), build results and caches"

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/embedworker demo

test: $(STAMP)
	$(BIN)/pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)
	$(BIN)/pytest

# With TEST_POSTGRES=/path/to/bin on that server alone, such as $(.ci/postgresql 16).
test-compat: $(STAMP)
ifdef TEST_POSTGRES
	TEST_POSTGRES=$(TEST_POSTGRES) $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(COMPAT_TESTS)
else
	for version in 15 17; do \
		programs=$$(.ci/postgresql $$version $(COMPAT_FOLDER)) && $(MAKE) test-compat TEST_POSTGRES=$$programs || exit 1; \
	done
endif

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	$(BIN)/python docs/generate.py --write

lock: $(BIN)/python
	$(BIN)/python -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet pip-tools
	rm -f requirements/dev.txt requirements/worker.txt
	$(PIP_COMPILE) --extra dev --build-deps-for editable --output-file requirements/dev.txt pyproject.toml
	$(PIP_COMPILE) --extra worker --extra openvino --build-deps-for wheel --constraint requirements/dev.txt \
		--output-file requirements/worker.txt pyproject.toml

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

$(STAMP): $(BIN)/python pyproject.toml constraints.txt $(LOCK)
	@echo "Setting up $(VENV), once: downloads 0.4 GB, and torch, which is 0.2 GB without CUDA and several GB"
	@echo "with it. On Linux it comes with CUDA unless you say: make $(MAKECMDGOALS) TORCH_INDEX=… (see Makefile)."
	@echo "Takes about 5 minutes on two cores."
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

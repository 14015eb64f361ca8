# Each target makes its own virtual environment in .venv where there is none. PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PLUGIN_VENV := .venv-plugin
EXAMPLE := examples/tiacc-onnxruntime
DOCS_STAMP := $(VENV)/.docs

.PHONY: demo test test-slow fuzz zoo plugin lint bench docs clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP) lint
	$(BIN)/pytest -m "not slow and not gpu" -n 2 --dist worksteal --benchmark-skip

	$(MAKE) plugin

# The example backend in a virtual environment of its own, which finds torch and tiacc in ours and has the rest to itself.
plugin: $(STAMP)
	test -x $(PLUGIN_VENV)/bin/python || $(BIN)/python -m venv $(PLUGIN_VENV)
	$(PLUGIN_VENV)/bin/python examples/borrow_packages.py $(VENV)
	$(PLUGIN_VENV)/bin/pip install --quiet ./$(EXAMPLE)
	cd $(EXAMPLE) && $(abspath $(PLUGIN_VENV))/bin/python -m pytest

test-slow: $(STAMP)
	$(BIN)/pytest -m "slow and not gpu" --benchmark-skip

fuzz: $(STAMP)
	$(BIN)/python -m tests.graph.fuzz 0 5000

zoo: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[zoo]'
	$(BIN)/python -m benchmarks.zoo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.record

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(STAMP): pyproject.toml constraints.txt requirements-test-data.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps --requirement requirements-test-data.txt
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) $(PLUGIN_VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache

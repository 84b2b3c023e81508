# Two commands are enough: `make run` and `make test`. Each makes .venv first, from the registry that pip is set up for.
PYTHON ?= python3
BIN := .venv/bin
.DELETE_ON_ERROR:
.PHONY: run test setup check bench clean

run: .venv/installed
	$(BIN)/compress run pipelines/mobilenet.yaml

test: .venv/installed-test
	$(BIN)/python -m pytest

setup: .venv/installed-test

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Means of seeds 0, 1 and 2, and the int8 file in an old runtime (its own environment, .venv-old).
bench: .venv/installed .venv-old/installed
	$(BIN)/python benchmarks/main_job.py

# torch and torchvision must come from one place, as a pair: a local wheel of one of them would break the other.
.venv/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'compress needs Python 3.11 or later: make PYTHON=python3.12 run')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	env -u PIP_FIND_LINKS $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-test: .venv/installed
	env -u PIP_FIND_LINKS $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

.venv/installed-dev: .venv/installed-test
	env -u PIP_FIND_LINKS $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

# The oldest runtime that the files are promised to be int8 in. It needs NumPy 1 and a Python that it has wheels for.
.venv-old/installed:
	test -x .venv-old/bin/python || $(PYTHON) -m venv .venv-old
	env -u PIP_FIND_LINKS .venv-old/bin/python -m pip install --quiet --disable-pip-version-check "onnxruntime==1.18.*" "numpy<2" onnx
	touch $@

clean:
	rm -rf .venv .venv-old build dist *.egg-info

# Two commands are enough: `make run` and `make test`. Each makes .venv first, from the registry that pip is set up for.
PYTHON ?= python3
BIN := .venv/bin
.DELETE_ON_ERROR:
.PHONY: run test setup check bench bench-quantization bench-pruning bench-distillation faults clean

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

# Speed, size, step time, accuracy and agreement of int8 files beside other quantizers and in other runtimes, each in an
# environment of its own. CIFAR=data/cifar100.npz adds a subset of CIFAR-100.
bench-quantization: .venv/installed .venv-old/installed
	-$(MAKE) .venv-peers/installed
	$(BIN)/python benchmarks/quantization.py $(if $(CIFAR),--cifar $(CIFAR))

# Speed, targets and accuracy of pruned nets; CIFAR=data/cifar100.npz adds a subset of CIFAR-100.
bench-pruning: .venv/installed
	$(BIN)/python benchmarks/pruning.py $(if $(CIFAR),--cifar $(CIFAR))

# Speed of distilling on this machine's cores, and what each form gains; CIFAR=data/cifar100.npz adds a subset of
# CIFAR-100. What needs a GPU: benchmarks/distillation_gpu.py.
bench-distillation: .venv/installed
	$(BIN)/python benchmarks/distillation.py $(if $(CIFAR),--cifar $(CIFAR))

# Kills, damaged files, full disks, bad and malicious input, injected one after the other; about a quarter of an hour.
faults: .venv/installed-test
	$(BIN)/python benchmarks/faults.py

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

# Another runtime and another quantizer. The benchmark says so where one does not install.
.venv-peers/installed:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	env -u PIP_FIND_LINKS .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check openvino onnx onnxruntime
	-env -u PIP_FIND_LINKS .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check nncf
	touch $@

clean:
	rm -rf .venv .venv-old .venv-peers build dist *.egg-info

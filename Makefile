# make demo | test | lint | shape | bench | venv      VENV=path names another place for the environment
VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TARGET ?= cpu
TORCH  := torch==2.13.0
BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.installed-$(TARGET)
STUBS  := $(if $(filter cpu,$(TARGET)),$(wildcard deployments/lock/stubs/*/pyproject.toml))

.PHONY: venv demo test lint shape bench
venv: $(STAMP)

# CPU builds of torch come from the configured package index where it has them, else from PyTorch's own; never from both at once.
$(STAMP): deployments/lock/$(TARGET).txt $(STUBS) pyproject.toml
	@echo "[venv] creating $(VENV) from deployments/lock/$(TARGET).txt (a few minutes)"
	$(PYTHON) -c "import sys; sys.exit('alignflow needs Python 3.11 or 3.12, this is %d.%d; set PYTHON=' % sys.version_info[:2]) if not (3, 11) <= sys.version_info[:2] <= (3, 12) else None"
	$(PYTHON) -m venv $(VENV)
ifeq ($(TARGET),cpu)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)+cpu" || \
	  $(BIN)/pip install --quiet --disable-pip-version-check --index-url https://download.pytorch.org/whl/cpu "$(TORCH)+cpu"
endif
	$(BIN)/pip install --quiet --disable-pip-version-check -r deployments/lock/$(TARGET).txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: venv
	$(BIN)/alignflow run --preset quickstart

test: venv
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

shape: venv
	$(BIN)/python benchmarks/shape.py

bench: venv
	$(BIN)/python benchmarks/orchestration.py

# make demo | test | test-quick | fuzz | faults | lint | shape | bench | venv      VENV=path names another place for the environment
# CASE="C1 dpo" narrows make bench; results and docs/performance.md are written either way
VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TARGET ?= cpu
TORCH  := torch==2.13.0
BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.installed-$(TARGET)
PEER   := .venv-peer
# Test files side by side. A worker is often waiting for a process, so that two cores are busy with three; 0: one file after the other.
WORKERS ?= 2
PYTEST  = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 10
STUBS  := $(if $(filter cpu,$(TARGET)),$(wildcard deployments/lock/stubs/*/pyproject.toml))

.PHONY: venv demo test test-quick fuzz faults lint shape bench
venv: $(STAMP)

# CPU builds of torch come from the configured package index where it has them, else from PyTorch's own; never from both at once.
# $(call install_torch,folder of the environment's programs)
define install_torch
	$(1)/pip install --quiet --disable-pip-version-check "$(TORCH)+cpu" || \
	  $(1)/pip install --quiet --disable-pip-version-check --index-url https://download.pytorch.org/whl/cpu "$(TORCH)+cpu"
endef

$(STAMP): deployments/lock/$(TARGET).txt $(STUBS) pyproject.toml
	@echo "[venv] creating $(VENV) from deployments/lock/$(TARGET).txt (a few minutes)"
	$(PYTHON) -c "import sys; sys.exit('alignflow needs Python 3.11 or 3.12, this is %d.%d; set PYTHON=' % sys.version_info[:2]) if not (3, 11) <= sys.version_info[:2] <= (3, 12) else None"
	$(PYTHON) -m venv $(VENV)
ifeq ($(TARGET),cpu)
	$(call install_torch,$(BIN))
endif
	$(BIN)/pip install --quiet --disable-pip-version-check -r deployments/lock/$(TARGET).txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: venv
	$(BIN)/alignflow run --preset quickstart

test: venv
	$(PYTEST)

# None of these waits for much: as many workers as cores, and each has seconds of imports.
test-quick: WORKERS := 2
test-quick: venv
	$(PYTEST) -m "not slow and not seconds"

# 10,000 random inputs; about 20 minutes on a core. make test has 500 of them.
# Kills processes and mounts file systems, in namespaces of its own; needs root. Writes the table of docs/operations.md.
faults: venv
	unshare -n -p -m -u -f --mount-proc $(BIN)/python -m tests.faults.table

fuzz: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run_fuzz $(or $(COUNT),10000)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

shape: venv
	$(BIN)/python benchmarks/shape.py

# About 50 minutes on two idle cores.
bench: venv $(PEER)/.installed
	$(BIN)/python benchmarks/run.py $(CASE)
ifndef CASE
	$(BIN)/python benchmarks/orchestration.py
	$(BIN)/python benchmarks/data_growth.py
	$(BIN)/python benchmarks/rows_growth.py
endif
	$(BIN)/python benchmarks/write_performance.py

$(PEER)/.installed: benchmarks/peer/requirements.txt
	@echo "[bench] creating $(PEER), the peer's own environment"
	$(PYTHON) -m venv $(PEER)
	$(call install_torch,$(PEER)/bin)
	$(PEER)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peer/requirements.txt
	touch $@

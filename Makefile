# Needs Python >= 3.11, git and make; everything else is installed into .venv/ from the lock files.
PYTHON ?= python3
BIN := .venv/bin
UV := .tools/bin/uv
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
# DVC's indexes are pickles: not in its /var/tmp/dvc, which all users share
export DVC_SITE_CACHE_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/uotft/dvc

.DEFAULT_GOAL := help
MINUTES ?= 60
.PHONY: help setup format check test test-all every-test faults soak audit gpu repro graph docs golden lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(BIN)/.installed  ## make the environment in .venv/ from requirements.lock

$(UV): requirements-tools.lock
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(BIN)/.installed: requirements.lock pyproject.toml $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

repro: setup  ## run the whole pipeline, from prepare to compare
	@mkdir -p -m 700 $(dir $(DVC_SITE_CACHE_DIR))
	dvc repro
	@cat reports/comparison.md

format: setup  ## format the code
	ruff format .
	ruff check --fix .

check: setup  ## lint, types, structure, spelling
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-cache  # it missed files that git had changed
	python .ci/structure.py --check
	codespell

# Two processes; a file's tests stay in one of them, and long files begin first (tests/conftest.py).
# Threads that wait leave their core to the other process (docs/log.md, 2026-11-28).
PYTEST := OMP_WAIT_POLICY=PASSIVE pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup  ## the main tests, in about 11 minutes: after each change
	$(PYTEST) -m "not slow"

test-all: setup  ## the tests marked slow, which make test leaves out: before a merge
	$(PYTEST) --numprocesses 3 -m slow  # they wait for processes most of the time

every-test: setup  ## both at once, which takes less time than one after the other: what CI runs
	$(PYTEST) --numprocesses 3 --durations 25

faults: setup  ## every fault of docs/reliability.md, with the full counts; then: make docs
	UOTFT_FAULTS=full $(PYTEST) tests/faults

audit: $(UV)  ## look the locked packages up in a list of known holes; exit code 3: not reached
	@UV=$(UV) $(PYTHON) .ci/audit.py

soak: setup  ## start, kill and resume trainings for MINUTES (60): is all exact, does anything grow
	python tests/faults/soak.py $(MINUTES)

gpu:  ## what a GPU makes of it, in 8 minutes; without `make setup` the packages that are there
	$(PYTHON) benchmarks/gpu.py --docs docs/benchmarks.md

graph: setup  ## write the code that each stage depends on into dvc.yaml
	python .ci/stage_code.py

docs: setup  ## write docs/commands.md, docs/parameters.md and the table of docs/reliability.md
	python .ci/reference.py

golden: setup  ## rewrite the committed numbers; review the diff
	UOTFT_GOLDEN=write pytest tests/golden

lock: $(UV)  ## choose new exact versions for both lock files
	$(UV) pip compile --quiet --upgrade pyproject.toml --extra cpu --extra timm \
		--extra lite --extra onnx --extra dask --group dev --universal --python-version 3.11 --generate-hashes --no-header -o requirements.lock
	sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements-tools.lock | $(UV) pip compile --quiet - \
		--universal --generate-hashes --no-header -o requirements-tools.lock

clean:  ## remove what the pipeline made, but not DVC's cache or MLflow's runs
	rm -rf data cache pretrained embeddings selections models forecast metrics predictions reports dvc_plots

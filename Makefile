# Two commands do everything on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Two test processes with one thread each are faster on small layers than one process with two threads.
THREADS := OMP_NUM_THREADS=1
# Bytecode is kept whatever the environment says: without it every process rewrites the assertions of all tests again.
TEST    := $(THREADS) PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: setup demo docs test test-all lint format wheel zoo zoo-onnx bench mutants address clean lock
.DEFAULT_GOAL := test

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Test the wheel in an empty environment; `make wheel ARGS=--extras` adds every extra and the commands of the README.
wheel: setup
	$(BIN)/python tools/wheel.py $(ARGS)

demo: setup
	$(BIN)/onebyone demo --output demo

# The documentation as a site in site/; a broken link or reference is an error.
docs: setup
	$(BIN)/mkdocs build --strict

test: setup
	$(TEST) -m "not slow and not gpu" $(ARGS)

test-all: setup
	$(TEST) -m "not gpu" $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/house.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

zoo: setup
	$(BIN)/python -m bench.zoo $(ARGS)

# Convert and verify ONNX files as exporters and quantisers write them; resumes where it stopped.
zoo-onnx: setup
	$(THREADS) $(BIN)/python -m bench.onnx_zoo $(ARGS)

bench: setup
	$(BIN)/python -m bench.run $(ARGS)

# Mutation testing by room (`make mutants ARGS=laws`); resumes where it stopped.
mutants: setup
	$(THREADS) $(BIN)/python -m tools.mutants $(ARGS)

# Write the public address of the repository into what a release shows (`make address URL=https://HOST/OWNER/NAME`).
address: setup
	$(BIN)/python -m tools.address $(URL)

# Write the lock file from the installed packages (without the local version tag of CPU builds).
lock:
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude wheel --exclude onebyone | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf $(VENV) demo site build dist .artefacts .mutants

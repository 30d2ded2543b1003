# The first run of a target creates its environment; a change of pyproject.toml or constraints.txt updates it.
# Another Python: make demo PYTHON=python3.12
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all fuzz lint docs checkpoint clean
.NOTPARALLEL:

demo: $(VENV)/run.stamp  ## Run the demo; ARGS="--help" lists its options.
	$(BIN)/worldmodel demo $(ARGS)

test: $(VENV)/dev.stamp  ## Run the tests, without the slow ones.
	$(BIN)/pytest -n 2 $(ARGS)

test-all: $(VENV)/dev.stamp  ## Run the tests, the slow ones included.
	$(BIN)/pytest -n 2 -m "not gpu" $(ARGS)

fuzz: $(VENV)/dev.stamp  ## Read 10,000 damaged copies of every form, model and monitor.
	WORLDMODEL_FUZZ=$${WORLDMODEL_FUZZ:-10000} $(BIN)/pytest tests/datasets/test_fuzz.py tests/cli/test_damaged_folders.py $(ARGS)

lint: $(VENV)/dev.stamp  ## Check style and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/docs.stamp  ## Build the documentation; a warning is an error.
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

checkpoint: $(VENV)/run.stamp  ## Train the shipped checkpoint from its recipe.
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/tabletop.sh

clean:  ## Remove the environment and build outputs.
	rm -rf $(VENV) build dist docs/_build *.egg-info

$(VENV)/run.stamp: EXTRAS := all
$(VENV)/dev.stamp: EXTRAS := all,dev
$(VENV)/docs.stamp: EXTRAS := all,docs
$(VENV)/run.stamp $(VENV)/dev.stamp $(VENV)/docs.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

# Each target sets up what it needs, once; it sets up again when pyproject.toml or constraints.txt changes.
# Another Python: make demo PYTHON=python3.12
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs checkpoint clean
.NOTPARALLEL:

demo: $(VENV)/run.stamp  ## Set up and run the main job; ARGS="--help" lists its options.
	$(BIN)/worldmodel demo $(ARGS)

test: $(VENV)/dev.stamp  ## Set up and run the tests.
	$(BIN)/pytest -n 2 $(ARGS)

lint: $(VENV)/dev.stamp  ## Style and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/docs.stamp  ## Build the documentation; a warning is an error.
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

checkpoint: $(VENV)/run.stamp  ## Train the shipped checkpoint again, from its recipe.
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/tabletop.sh

clean:  ## Remove the environment and everything built.
	rm -rf $(VENV) build dist docs/_build *.egg-info

$(VENV)/run.stamp: EXTRAS :=
$(VENV)/dev.stamp: EXTRAS := [dev]
$(VENV)/docs.stamp: EXTRAS := [docs]
$(VENV)/run.stamp $(VENV)/dev.stamp $(VENV)/docs.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e ".$(EXTRAS)"
	touch $@

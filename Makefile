# Each target makes .venv with what it needs, then runs. Python 3.11 or newer is all that must be there.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := train,pipeline,test,dev

.PHONY: install train test test-slow lint docs clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

train: install
	$(BIN)/jnet train $(ARGS)

test: install
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow" $(ARGS)

test-slow: install
	XLA_FLAGS= $(BIN)/python -m pytest -q -n auto --dist worksteal -m slow -rs $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv runs

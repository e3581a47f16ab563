# `make study` and `make test` do all the set-up; the rest is for those who change the code.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: study test check api clean

study: .venv/installed
	$(BIN)/study run quick

test: .venv/installed
	$(BIN)/python -m pytest -m "not long"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Our names are imported when first used; pdoc sees those that were.
api: .venv/installed
	$(BIN)/python -c "from study import *; from analysis import *; from pdoc.__main__ import cli; cli()" \
	  --docformat google --output-directory build/api study analysis trainables.tune

clean:
	rm -rf .venv build dist *.egg-info

# uv installs the pinned packages in about half a minute; the stamp says that it is done.
.venv/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

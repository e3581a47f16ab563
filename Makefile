# `make study` and `make test` do all the set-up; the rest is for those who change the code.
# The newest that runs; a name on the path may be a shim of a version that is not installed.
PYTHON ?= $(shell for minor in 14 13 12 11; do python3.$$minor -c "" 2>/dev/null && echo python3.$$minor && break; done || echo python3)
BIN := .venv/bin

.PHONY: study test check nightly docs wheels figures api clean

study: .venv/installed
	$(BIN)/study run quick

test: .venv/installed
	$(BIN)/python -m pytest -m "not long and not alone" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/house.py

# Those of `test` that draw examples, on ten times as many; then the tests that `test` and `.ci/run` leave out, an hour or
# more; those that need the whole machine run last, alone.
nightly: .venv/extras
	$(BIN)/python -m pytest -m "hypothesis and not long" -n 2 --dist loadfile --no-loadscope-reorder --hypothesis-profile thorough
	$(BIN)/python -m pytest -m "nightly and not alone" -n 2 --dist loadfile --no-loadscope-reorder --durations=20
	$(BIN)/python -m pytest -m "nightly and alone" --durations=20

# README, docs and examples as a site in build/site, which needs no network.
docs: .venv/extras
	rm -rf build/pages build/site
	mkdir -p build/pages
	cp -r README.md docs examples build/pages
	$(BIN)/zensical build --strict --clean

# With the native kernel for each platform, into dist.
wheels: .venv/extras
	$(BIN)/python -m trainables.engines.kernel.wheels

# Those of the README and of docs/gallery.md; pdftoppm is poppler's.
figures: .venv/installed
	mkdir -p build
	{ cat study/spec/shipped/quick.toml; printf '\n[recording]\ngradient_noise = true\n'; } > build/quick.toml
	$(BIN)/study run build/quick.toml --out build/quick
	$(BIN)/python -m tests.gallery build/quick
	$(BIN)/study init build/digits.toml --data digits --optimizers sgd,momentum,adam --trials 12 --epochs 8
	$(BIN)/study run build/digits.toml --out build/digits
	$(BIN)/study report build/digits --pdf
	$(BIN)/study reproduce --only regimes --out build/reproduction
	pdftoppm -r 180 -png -singlefile build/digits/report/figures/optimizers.pdf docs/images/optimizers
	pdftoppm -r 220 -png -singlefile build/reproduction/figures/regimes-tuned.pdf docs/images/regimes-tuned

# Our names are imported when first used; pdoc sees those that were.
api: .venv/installed
	$(BIN)/python -c "from study import *; from analysis import *; from pdoc.__main__ import cli; cli()" \
	  --docformat google --output-directory build/api study analysis trainables.tune

clean:
	rm -rf .venv build dist *.egg-info

# uv installs the pinned packages in about half a minute; the stamp says that it is done.
.venv/installed: requirements.txt pyproject.toml
	@echo "installing torch, ray and the rest into .venv: a minute or two"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	$(BIN)/python -m trainables.engines.kernel.build
	touch $@

.venv/extras: .venv/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[bench,docs,wheels]"
	touch $@

# `make train` runs the main job and `make test` passes the tests; each sets up all it needs first.
# Both work on a fresh machine with Python 3.11 to 3.13 and make. Box2D, which the landers need, has no wheel for Python 3.14.

PYTHON ?= python3
METHOD ?= gradnorm
ARGS   ?=

BIN := .venv/bin

.PHONY: train test check format docs clean help

help:
	@echo "make train [METHOD=gradnorm] [ARGS='--seed 1 --variant blind']   train, evaluate, write results/runs"
	@echo "make test [ARGS='-k gradnorm']                                    run the tests"
	@echo "make check                                                        lint, format check and types"
	@echo "make format                                                       format the code"
	@echo "make docs                                                         build the documentation, docs/_build/index.html"
	@echo "make clean                                                        remove the virtual environment and caches"

train: .venv/run.stamp
	$(BIN)/python -m experiments.$(METHOD).train $(ARGS)

test: .venv/test.stamp
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

check: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs.stamp
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build

.venv/bin/python:
	$(PYTHON) -c "import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit('Python 3.11 to 3.13 is needed (Box2D has no wheel for 3.14): make PYTHON=python3.13')"
	$(PYTHON) -m venv .venv

# torch comes first and by its exact version: a range would be answered by the newest build, with gigabytes of CUDA.
.venv/run.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[programs]"
	touch $@

.venv/docs.stamp: .venv/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

.venv/test.stamp: .venv/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

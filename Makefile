# Everything runs in .venv, which the targets make if there is none; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: .venv/installed ## train on the bundled dataset and print the table (minutes)
	$(BIN)/python src/train.py experiment=decoder trainer.max_epochs=8 trainer.check_val_every_n_epoch=4 baselines=[pq,opq,lsq]

test: .venv/installed-dev ## run the whole test suite
	$(BIN)/python -m pytest

lint: .venv/installed-dev ## check format, style, types, layers and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell *.md benchmarks conf docs src

format: .venv/installed-dev ## format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/installed-dev ## build the documentation as a site, site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove the environment, the site and all caches in this folder (outputs/ stays)
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv (a few minutes the first time)"
	$(PIP) -e ".[cpu,sift]"
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv, with what tests and checks need (a few minutes the first time)"
	$(PIP) -e ".[dev]"
	@touch $@ .venv/installed

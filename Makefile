.DEFAULT_GOAL := help
PYTHON ?= python

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

install: ## Install growlm and what its tests need
	$(PYTHON) -m pip install -e '.[test]'

run: ## Grow a small model through four phases on the embedded stories
	$(PYTHON) -m growlm.train

test: ## The default tests (a few minutes on two cores)
	$(PYTHON) -m pytest

test-slow: ## The slow tests
	$(PYTHON) -m pytest -m slow

test-lowest: ## The default tests with the oldest libraries that are supported, in .venv-lowest
test-newest: ## The default tests with the newest ones, in .venv-newest
test-lowest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install -q -c constraints/$*.txt -e '.[test]'
	.venv-$*/bin/python -m pytest

test-machines: ## The tests as if on other processors, a table (about 20 minutes)
	$(PYTHON) scripts/imitate_machines.py

constraints: ## Write constraints/*.txt anew: the libraries of test-lowest and test-newest
	$(PYTHON) -m pip install -q uv
	$(PYTHON) scripts/write_constraints.py

docs: ## Build the documentation site into site/; needs `pip install -e '.[docs]'`
	$(PYTHON) scripts/build_docs.py

docs-serve: ## Show the site at localhost:8000 while its pages change
	$(PYTHON) -m zensical serve

docs-reference: ## Write docs/configuration.md anew from the docstrings of the config classes
	$(PYTHON) scripts/write_config_reference.py

lint: ## Lint, format and type checks
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

.PHONY: help install run test test-slow test-lowest test-newest test-machines constraints docs docs-serve docs-reference lint

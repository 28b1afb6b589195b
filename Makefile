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

lint: ## Lint, format and type checks
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

.PHONY: help install run test test-slow lint

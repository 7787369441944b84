# Development of the collection. `make help` lists the targets; all they create lies in .venv and .cache.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := $(CURDIR)/.venv
CACHE := $(CURDIR)/.cache
SCANNERS := $(CACHE)/scanners
BENCH_TOOLS := $(CACHE)/bench-tools
COLLECTIONS := $(CACHE)/collections
VERSION := $(shell sed -n 's/^version: *//p' galaxy.yml)
TARBALL := $(CACHE)/dist/edgesec-nanomq-$(VERSION).tar.gz

# The directories too: a file that was removed changes only its directory.
CONTENT := $(shell find galaxy.yml LICENSE README.md CHANGELOG.md changelogs docs meta playbooks plugins roles \
	-name __pycache__ -prune -o -print 2>/dev/null)

# Tests and demo use the collection as a user gets it: installed from the built tarball.
INSTALLED := $(COLLECTIONS)/.installed
export PATH := $(VENV)/bin:$(PATH):$(SCANNERS)/bin
export ANSIBLE_COLLECTIONS_PATH := $(COLLECTIONS)
export PYTHONPATH := $(COLLECTIONS)
export PYTHONDONTWRITEBYTECODE := 1
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
ifdef CI
export NO_COLOR := 1
endif

PYTEST := pytest -o cache_dir=$(CACHE)/pytest

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(INSTALLED) ## Show an insecure NanoMQ host, harden it, show that it holds (NANOMQ_PACKAGE=<file or URL>: a real one)
	@tests/demo/run

.PHONY: test
test: $(VENV)/.test ## Run everything below
	@tests/stages lint unit browser contract molecule

.PHONY: lint
lint: $(VENV)/.test ## Static checks
	@tests/lint

.PHONY: unit
unit: $(VENV)/.test $(INSTALLED) ## Unit tests, and checks of the tree and the tarball
	@EDGESEC_TARBALL=$(TARBALL) $(PYTEST) --numprocesses=auto --dist=loadgroup tests/unit tests/quality

.PHONY: browser
browser: $(VENV)/.test $(INSTALLED) ## The audit's page in a real Chromium; screenshots go to .cache/screenshots
	@tests/browser/chromium >/dev/null
	@$(PYTEST) tests/browser

.PHONY: contract
contract: $(VENV)/.test $(INSTALLED) ## The broker's contract, on the double and on a real NanoMQ if there is one
	@tests/lab/lab install >/dev/null
	@$(PYTEST) tests/contract

.PHONY: fuzz
fuzz: $(VENV)/.test $(INSTALLED) ## Differential fuzzing of a real NanoMQ (NANOMQ_BINARY), an hour or more; no part of `test`
	@tests/fuzz/run

.PHONY: molecule
molecule: $(VENV)/.test $(SCANNERS)/.installed $(INSTALLED) ## Scenarios on test hosts (SCENARIOS="default ...": these only)
	@community=$$(tests/take-collection community.crypto) && \
	ANSIBLE_COLLECTIONS_PATH=$(COLLECTIONS):$$community tests/lab/run-scenarios $(SCENARIOS)

.PHONY: bench
bench: $(VENV)/.test $(BENCH_TOOLS)/.installed $(INSTALLED) ## Measure against stock modules, front ends, what hardening costs MQTT, and the audit's page
	@bench/run
	@bench/front
	@bench/mqtt
	@bench/report

.PHONY: build
build: $(TARBALL) ## Build the collection's tarball
	@echo $(TARBALL)

.PHONY: changelog
changelog: $(VENV)/.test ## Bring CHANGELOG.md up to date with its fragments and the plugins
	@cd "$$(tests/copy-tree $(CACHE)/changelog)" && \
	ANSIBLE_COLLECTIONS_PATH=$(CACHE)/changelog antsibull-changelog release --update-existing --refresh --reload-plugins && \
	cp CHANGELOG.md $(CURDIR) && cp changelogs/changelog.yaml $(CURDIR)/changelogs

.PHONY: clean
clean: ## Remove .venv and .cache, test hosts stopped
	@if [ -x tests/lab/lab ]; then tests/lab/lab stop; fi
	rm -rf $(VENV) $(CACHE)

$(VENV)/.demo: tests/bootstrap requirements/demo.txt
	@echo "installing requirements/demo.txt"
	@tests/bootstrap requirements/demo.txt
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.demo
	@echo "installing requirements/test.txt"
	@tests/bootstrap requirements/test.txt
	@touch $@

$(SCANNERS)/.installed: tests/bootstrap requirements/scanners.txt
	@echo "installing requirements/scanners.txt"
	@tests/bootstrap requirements/scanners.txt $(SCANNERS)
	@touch $@

$(BENCH_TOOLS)/.installed: tests/bootstrap requirements/bench.txt
	@echo "installing requirements/bench.txt"
	@tests/bootstrap requirements/bench.txt $(BENCH_TOOLS)
	@touch $@

$(TARBALL): $(CONTENT) | $(VENV)/.demo
	@ansible-galaxy collection build --force --output-path $(@D) >/dev/null

$(INSTALLED): $(TARBALL)
	@rm -rf $(COLLECTIONS).new $(COLLECTIONS).old
	@ansible-galaxy collection install --force --offline --no-deps --collections-path $(COLLECTIONS).new $(TARBALL) >/dev/null
	@touch $(COLLECTIONS).new/.installed
	@if [ -e $(COLLECTIONS) ]; then mv $(COLLECTIONS) $(COLLECTIONS).old; fi
	@mv $(COLLECTIONS).new $(COLLECTIONS)

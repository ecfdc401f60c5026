# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-down test check lint sanity unit integration lab bench clean

# The tools' own interpreter, by its full name: nothing is looked up through version managers' shims.
python := $(CURDIR)/.venv/bin/python
run := $(python) -I tests/tools/check.py

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install what the demo and the tests need; the only step that downloads
	@bash tests/tools/setup.sh

demo: setup ## prepare this machine, start three microVMs, show them, and run again without a change
	@$(python) -I tests/tools/demo.py up

demo-down: setup ## remove everything that the demo made
	@$(python) -I tests/tools/demo.py down

test: setup ## lint, sanity, unit and integration tests, and the most telling ones of the lab where it has hypervisors
	@$(run) lint sanity unit integration brief-lab

check: setup ## the quick part of it, for between commits: lint, unit, and the few guests that prove the main job
	@ARGS="$(ARGS)" $(run) lint quick

lint: setup ## ruff, mypy, yamllint, shellcheck, ansible-lint, docs, changelog, build and install
	@$(run) lint

sanity: setup ## ansible-test sanity, without an ignore file
	@$(run) sanity

unit: setup ## unit tests (ARGS='-k name' for some)
	@ARGS="$(ARGS)" $(run) unit

integration: setup ## integration tests with real guests, as root (ARGS='-k name' for some)
	@ARGS="$(ARGS)" $(run) integration

lab: setup ## the real hypervisors of COCOON_LAB_BIN (/opt/cocoon-lab/bin), in a machine with KVM, as root (20 minutes)
	@ARGS="$(ARGS)" $(run) lab

bench: setup ## measure, against libvirt too; writes .work/bench.json
	@$(python) -I tests/bench/bench.py $(ARGS)

clean: ## remove virtual environments, caches and built files (not what runs on the machine)
	rm -rf .venv .work .mypy_cache .ruff_cache .pytest_cache cocoon-microvm-*.tar.gz

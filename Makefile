# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# make migrate   needs Python 3.11 and nothing else: no root, no system packages, no qemu-img
# make check     what concerns a change, in two minutes: no root and no system packages either
# make test      everything; installs what it needs (see bindep.txt)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# One image or tree to migrate; empty: samples made for it under build/samples.
IMAGES ?=
# qcow2 or raw; empty: the role's default.
FORMAT ?=
# 1: only show what would be done.
CHECK ?=
# More arguments for ansible-playbook, or for pytest in `make unit`.
EXTRA ?=
# Molecule scenarios that `make molecule` runs.
SCENARIOS ?= default libvirt fleet
# The ansible-core releases whose sanity tests run, the newest and the oldest; supported are all of ALL_CORES.
# Each needs requirements/core-VERSION.txt.
CORES ?= 2.21 2.16
ALL_CORES := 2.21 2.20 2.19 2.18 2.17 2.16
export IMAGES FORMAT CHECK

ROOT := $(CURDIR)
BUILD := $(ROOT)/build
LINK := $(BUILD)/ansible_collections/vmimage/qcow
DEV := $(ROOT)/.venv
RUN := $(ROOT)/.venv-run
RELEASE := $(ROOT)/.venv-release
# Python compiles what it imports by itself; compiling all that is installed takes six times as long as installing it.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile

export ANSIBLE_COLLECTIONS_PATH := $(BUILD)
export PYTHONPATH := $(BUILD)
export ANSIBLE_NOCOWS := 1
# The make that runs us has its own idea of flags; ours must not reach the tools.
unexport MAKEFLAGS
# Ansible is started hundreds of times: without byte code each start compiles it anew, which takes longer than the rest of it.
unexport PYTHONDONTWRITEBYTECODE

say = @printf '\n\033[1m== %s\033[0m\n' "$(1)"

# A step without anything to run is a mistake.
at_least_one = compgen -G '$(1)' >/dev/null || { echo "Nothing to run: no $(1)" >&2; exit 1; }

.PHONY: help
help: ## show what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort | awk -F'\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

# ---- environments ----------------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: packages $(DEV)/ready $(DEV)/oracle $(LINK) ## build the development environment, system packages included

.PHONY: packages
packages:
	@tests/support/system-packages.sh

# The collection under the path that Ansible and Python look for it.
$(LINK):
	@mkdir -p $(dir $@) && ln -sfn ../../.. $@

$(RUN)/ready: requirements/run.txt
	$(call say,Building the run environment .venv-run)
	@python=$$(tests/support/find-python.sh) && "$$python" -m venv --clear $(RUN)
	@$(RUN)/bin/python $(PIP) -r requirements/run.txt
	@touch $@

$(DEV)/ready: requirements/dev.txt
	$(call say,Building the development environment .venv)
	@python=$$(tests/support/find-python.sh) && "$$python" -m venv --clear $(DEV)
	@$(DEV)/bin/python $(PIP) -r requirements/dev.txt
	@touch $@

# Needs a compiler, and only the differential tests need it.
$(DEV)/oracle: $(DEV)/ready requirements/oracle.txt
	$(call say,Building libqcow)
	@$(DEV)/bin/python $(PIP) -r requirements/oracle.txt \
		|| { echo "libqcow could not be built (a C compiler and Python's headers are needed): its tests will not run." >&2; [ "$${CI:-}" != true ]; }
	@touch $@

$(RELEASE)/ready: requirements/release.txt
	$(call say,Building the environment for documentation and release .venv-release)
	@python=$$(tests/support/find-python.sh) && "$$python" -m venv --clear $(RELEASE)
	@$(RELEASE)/bin/python $(PIP) -r requirements/release.txt
	@touch $@

# A list may say which Python it needs at least.
.venv-core-%/ready: requirements/core-%.txt
	$(call say,Building an environment with ansible-core $*)
	@python=$$(tests/support/find-python.sh $$(sed -n 's/^# Python: //p' requirements/core-$*.in)) && "$$python" -m venv --clear .venv-core-$*
	@.venv-core-$*/bin/python $(PIP) -r requirements/core-$*.txt
	@touch $@

# Only other rules ask for these; make would take them for steps in between and remove them.
.PRECIOUS: .venv-core-%/ready

# The release of dev.txt is in .venv already.
.venv-core-2.19/ready: $(DEV)/ready
	@ln -sfn .venv .venv-core-2.19

# The JSON callbacks that tests run playbooks with, out of the package of PyPI that has them.
$(BUILD)/posix/ready: requirements/callbacks.txt $(DEV)/ready
	$(call say,Fetching the collection ansible.posix)
	@rm -rf $(BUILD)/posix && mkdir -p $(BUILD)/posix
	@$(DEV)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/callbacks.txt -d $(BUILD)/posix
	@cd $(BUILD)/posix && $(DEV)/bin/python -c 'import glob, zipfile; \
		packed = zipfile.ZipFile(glob.glob("*.whl")[0]); \
		packed.extractall(members=[name for name in packed.namelist() if name.startswith("ansible_collections/ansible/posix/")])' && rm *.whl
	@touch $@

# All that `make test` uses, each on its own: most of the time goes into waiting for files.
.PHONY: environments
environments: $(BUILD)/posix/ready $(DEV)/oracle $(RUN)/ready $(RELEASE)/ready $(ALL_CORES:%=.venv-core-%/ready) $(LINK)

.PHONY: lock
lock: ## resolve requirements/*.in anew
	@python=$$(tests/support/find-python.sh) && "$$python" -m venv .venv-lock
	@.venv-lock/bin/python $(PIP) uv
	@cd requirements && for list in *.in; do \
		{ echo '# Made by `make lock` from the .in file beside it. Do not edit.'; \
		  python=$$(sed -n 's/^# Python: //p' "$$list"); \
		  ../.venv-lock/bin/uv pip compile --quiet --universal --python-version "$${python:-3.11}" --upgrade --no-header --no-annotate \
			--no-emit-index-url --no-emit-find-links "$$list"; } > "$${list%.in}.new" && mv "$${list%.in}.new" "$${list%.in}.txt"; \
	done

# ---- first light -----------------------------------------------------------------------------------------------------------------

.PHONY: migrate
migrate: $(RUN)/ready $(LINK) ## migrate IMAGES=/path (or samples); FORMAT=raw, CHECK=1, EXTRA="-v"
	@[ -n "$$IMAGES" ] || [ -d build/samples ] || $(MAKE) samples
	@$(RUN)/bin/python tests/support/run_migrate.py $(EXTRA)

.PHONY: samples
samples: $(RUN)/ready $(LINK) ## make fresh sample images under build/samples
	@rm -rf build/samples build/state
	@$(RUN)/bin/python -m ansible_collections.vmimage.qcow.tests.support.make_samples build/samples

# ---- checks ----------------------------------------------------------------------------------------------------------------------

.PHONY: check
check: $(DEV)/ready $(LINK) ## what concerns a change, in two minutes: lint and the fast tests; no root, no system packages
	@start=$$SECONDS; $(MAKE) -j 2 --output-sync=target lint unit-fast; \
	printf '\n\033[1m== make check: passed in %d s\033[0m\n%s\n' $$((SECONDS - start)) \
		'Not run, left to `make test`: what was skipped or deselected above; $(strip $(LEFT)); ansible-test, the documentation site, the artifact, Molecule.'

.PHONY: test
test: packages ## every check and every test
	@start=$$SECONDS; \
	$(MAKE) -j 4 --output-sync=target environments; \
	$(MAKE) -j 3 --output-sync=target lint docs importer $(CORES:%=sanity-%); \
	$(MAKE) unit; \
	$(MAKE) -j 3 --output-sync=target unit-pythons integration-new integration-old; \
	$(MAKE) molecule; \
	printf '\n\033[1m== make test: all steps passed in %d s\033[0m\n' $$((SECONDS - start))

.PHONY: lint
lint: $(DEV)/ready $(LINK) ## ruff, mypy, import contracts, yamllint, shellcheck, ansible-lint, documentation, changelog, licences
	$(call say,ruff)
	@$(DEV)/bin/ruff check .
	@$(DEV)/bin/ruff format --check .
	$(call say,mypy)
	@MYPYPATH=$(BUILD) $(DEV)/bin/mypy -p ansible_collections.vmimage.qcow.plugins
	$(call say,import contracts)
	@$(DEV)/bin/lint-imports --no-cache --no-logo
	$(call say,yamllint)
	@$(DEV)/bin/yamllint --strict .
	$(call say,ansible-lint)
	@ANSIBLE_HOME=$(BUILD)/ansible-home ANSIBLE_COLLECTIONS_PATH=$(BUILD) PATH=$(DEV)/bin:$$PATH $(DEV)/bin/ansible-lint --offline --strict
	$(call say,antsibull-docs)
	@cd $(LINK) && PATH=$(DEV)/bin:$$PATH $(DEV)/bin/antsibull-docs lint-collection-docs --plugin-docs --check-extra-docs-refs --validate-collection-refs self --skip-rstcheck .
	$(call say,antsibull-changelog)
	@$(DEV)/bin/antsibull-changelog lint
	$(call say,shellcheck)
	@if command -v shellcheck >/dev/null; then git ls-files -co --exclude-standard -- '*.sh' .ci/run | xargs -r shellcheck; \
	else echo "NOT RUN: shellcheck is not installed"; [ "$${CI:-}" != true ]; fi
	$(call say,reuse: every file says its copyright and licence)
	@$(DEV)/bin/reuse lint --quiet || $(DEV)/bin/reuse lint

.PHONY: docs
docs: $(RELEASE)/ready $(LINK) ## the documentation site, in build/docs
	$(call say,documentation site)
	@docs/build.sh $(RELEASE) $(BUILD)/docs

.PHONY: importer
importer: $(RELEASE)/ready artifact ## what Ansible Galaxy checks when a release is uploaded
	$(call say,galaxy-importer)
	@tests/release/importer.sh $(RELEASE) $(BUILD)/vmimage-qcow-*.tar.gz
	$(call say,ansible-builder)
	@tests/release/execution-environment.sh $(RELEASE) $(BUILD)/vmimage-qcow-*.tar.gz

.PHONY: format
format: $(DEV)/ready ## let ruff lay out the Python files
	@$(DEV)/bin/ruff check --fix .
	@$(DEV)/bin/ruff format .

.PHONY: sanity
sanity: ## ansible-test sanity, without ignored findings, on each of CORES="2.21 2.16"
	@$(MAKE) -j 2 --output-sync=target $(CORES:%=sanity-%)

sanity-%: .venv-core-%/ready
	$(call say,ansible-test sanity with ansible-core $*)
	@tests/support/ansible-test.sh .venv-core-$* sanity --venv --color no

# The tests that need nothing and wait for nothing; tests/ has more, which only `make test` runs.
FAST := tests/unit tests/edge_cases tests/docs
LEFT := $(filter-out tests/support/ tests/lab/ tests/output/ $(FAST:%=%/) $(FAST),$(sort $(wildcard tests/*/)))

.PHONY: unit-fast
unit-fast: $(DEV)/ready $(LINK) ## the part of the tests that `make check` runs; EXTRA="-k name"
	$(call say,pytest)
	@$(DEV)/bin/python -m pytest -q -n 2 --dist worksteal -m 'not slow' $(FAST) $(EXTRA)

.PHONY: unit
unit: $(BUILD)/posix/ready $(DEV)/oracle $(RUN)/ready $(ALL_CORES:%=.venv-core-%/ready) $(LINK) ## pytest: unit, roles, differential, faults, documentation, artifact; EXTRA="-k name"
	$(call say,pytest)
	@$(DEV)/bin/python -m pytest -n 3 --dist worksteal --durations 20 $(EXTRA)

.PHONY: sanity-all
sanity-all: ## the same on every supported core
	@$(MAKE) sanity CORES="$(ALL_CORES)"

# The engine has to work on every Python that a host may have. Most tests need a newer one: this is the part that every Python can run.
.PHONY: unit-pythons
unit-pythons: $(LINK) ## images converted, verified, checked and rolled back on each Python from 3.6 that is here
	$(call say,tests/compat/smoke.py on every Python)
	@tests/compat/all-pythons.sh tests/compat/smoke.py

.PHONY: integration integration-new integration-old
integration: ## ansible-test integration, every target, on new and oldest Python
	@$(MAKE) -j 2 --output-sync=target integration-new integration-old

integration-new: $(DEV)/ready
	$(call say,ansible-test integration)
	@$(call at_least_one,tests/integration/targets/*/aliases)
	@tests/support/ansible-test.sh .venv integration $(INTEGRATION)

# Modules run on Python 3.6 through the last core that can do that.
integration-old: .venv-core-2.16/ready
	$(call say,ansible-test integration with modules on Python 3.6)
	@if PATH=$$PATH:$$(echo $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.6*/bin) command -v python3.6 >/dev/null; then \
		controller=$$(.venv-core-2.16/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		tests/support/ansible-test.sh .venv-core-2.16 integration $(INTEGRATION) \
			--controller origin:python=$$controller --target controller:python=venv/3.6; \
	else echo "NOT RUN: there is no python3.6 on this machine."; fi

INTEGRATION := --color no --allow-destructive $(if $(filter 0,$(shell id -u)),--allow-root)

# A machine that cannot boot the lab's hosts (no root, no Debian) runs the rest and says so; with CI=true that is a failure. What Molecule remembers of
# an earlier checkout in the same place (that it is prepared, say) is forgotten first.
.PHONY: molecule
molecule: $(DEV)/ready $(LINK) ## the scenarios SCENARIOS="default libvirt fleet" of extensions/molecule
	@rc=0; tests/lab/vmhosts.sh check || rc=$$?; \
	if [ $$rc = 77 ]; then echo "NOT RUN: the scenarios that boot hosts of their own (they have a create.yml)."; \
	elif [ $$rc != 0 ]; then exit $$rc; fi; \
	for scenario in $(SCENARIOS); do \
		[ $$rc = 0 ] || [ ! -e "extensions/molecule/$$scenario/create.yml" ] || continue; \
		printf '\n\033[1m== molecule, scenario %s\033[0m\n' "$$scenario"; \
		PATH=$(DEV)/bin:$$PATH $(DEV)/bin/molecule reset -s "$$scenario" </dev/null; \
		PATH=$(DEV)/bin:$$PATH COLUMNS=140 $(DEV)/bin/molecule test -s "$$scenario" </dev/null; \
	done

.PHONY: bench
bench: setup ## measure against qemu-img and cp
	@$(DEV)/bin/python -m ansible_collections.vmimage.qcow.bench.run $(EXTRA)

.PHONY: fleet
fleet: $(DEV)/ready $(LINK) ## measure a night with 300 hosts: a window that closes, a stop, what the page costs; it takes the better part of an hour
	@$(DEV)/bin/python -m ansible_collections.vmimage.qcow.tests.scale.fleet $(EXTRA)

.PHONY: artifact
artifact: $(RUN)/ready ## the collection as it is published, in build/
	@rm -f $(BUILD)/vmimage-qcow-*.tar.gz
	@$(RUN)/bin/ansible-galaxy collection build --force --output-path $(BUILD) .

.PHONY: release
release: $(DEV)/ready ## write the changelog of the version in galaxy.yml from the fragments
	@$(DEV)/bin/antsibull-changelog release --update-existing --reload-plugins

.PHONY: clean
clean: ## remove all that make has made
	@rm -rf build .venv .venv-run .venv-release .venv-lock .venv-core-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .ansible

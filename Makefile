# Firstlight: from a bare Linux host to a proven LLM endpoint. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# What a newcomer may set: make demo MODEL=/path/model.gguf PORT=8000 ROOT=/path PYTHON=python3.12
# MODEL is a file, a folder, or a repository of a hub: org/name, org/name:Q8_0.
PYTHON ?= python3
MODEL ?= canary
PORT ?= 8000
ROOT ?=

VENV := .venv
DEV := .venv-dev
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Ansible's temporary files stay in the checkout, so that a home is neither needed nor touched.
export ANSIBLE_HOME := $(CURDIR)/.ansible
export LC_ALL := C.UTF-8
# Ansible starts Python hundreds of times; what was compiled once is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | \
	  awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# --- The demo -------------------------------------------------------------------------------

# Where the demo's state lies: ROOT, or what the modules take when there is none.
STATE_ROOT = PYTHONPATH=module_utils $(VENV)/bin/python -c \
  'import sys; from firstlight.paths import root; print(root(sys.argv[1]))' "$$ROOT"

.PHONY: demo
demo: ## Serve a proven endpoint on this machine (MODEL=/path/model.gguf or org/name PORT=8000 ROOT=/state)
	@started=$$(date +%s%N); \
	$(MAKE) --no-print-directory $(VENV)/ready || exit; \
	controller=$$(( ($$(date +%s%N) - started) / 1000000 )); \
	model=$$MODEL; if [ "$$model" != canary ] && [ -e "$$model" ]; then model=$$(realpath -- "$$model"); fi; \
	root=$$($(STATE_ROOT)); \
	printf '%s\n' "$$root" | cat - .demo 2>/dev/null | sort -u > .demo.new; mv .demo.new .demo; \
	FIRSTLIGHT_CONTROLLER_SECONDS=$$(printf '%d.%03d' $$((controller / 1000)) $$((controller % 1000))) \
	FIRSTLIGHT_MODEL=$$model FIRSTLIGHT_PORT=$$PORT FIRSTLIGHT_ROOT=$$root \
	$(VENV)/bin/ansible-playbook site.yml --inventory inventories/local
# Through the environment, so that no character of a path means anything to a shell.
demo down: export MODEL := $(MODEL)
demo down: export PORT := $(PORT)
demo down: export ROOT := $(ROOT)

.PHONY: down
down: ## Stop and remove everything that the demo made, and say what
	@if [ -z "$$ROOT" ] && [ ! -f .demo ] && [ ! -d $(VENV) ]; then \
	  echo "No demo was made here: nothing to take down. (ROOT=/path names another state.)"; \
	  exit; \
	fi; \
	$(MAKE) --no-print-directory $(VENV)/ready || exit; \
	touch .demo; \
	if [ -n "$$ROOT" ]; then $(STATE_ROOT); else cat .demo; fi > .demo.down; \
	while IFS= read -r root; do \
	  FIRSTLIGHT_ROOT=$$root $(VENV)/bin/ansible-playbook playbooks/teardown.yml \
	    --inventory inventories/local \
	    --extra-vars '{"inference_endpoint_teardown_names": ["demo"]}' < /dev/null || exit; \
	done < .demo.down; \
	while IFS= read -r root; do \
	  if [ -d "$$root/endpoints/demo" ]; then printf '%s\n' "$$root"; fi; \
	done < .demo > .demo.left; \
	mv .demo.left .demo; rm .demo.down; \
	if [ -s .demo ]; then echo "Other demos of this checkout are still there:"; cat .demo; exit; fi; \
	for made in reports/localhost/demo.json .demo .ansible $(VENV); do \
	  if [ -e "$$made" ]; then rm -rf "$$made"; echo "  $(CURDIR)/$$made"; fi; \
	done; \
	if ! ls reports/localhost/*.json 2>/dev/null | grep -qvE '/(host|run)\.json$$'; then \
	  rm -f reports/localhost/{host,run}.json; \
	fi; \
	rmdir reports/localhost 2>/dev/null; \
	if [ -z "$$(find reports -mindepth 1 -maxdepth 1 -type d ! -name runs 2>/dev/null)" ]; then \
	  rm -f reports/{index.html,report.md,report.json,runs/last.json}; \
	fi; \
	rmdir reports/runs reports 2>/dev/null || true

$(VENV)/ready: requirements/controller.txt
	@$(call environment,$(VENV),requirements/controller.txt)

$(DEV)/ready: requirements/development.txt
	@$(call environment,$(DEV),requirements/development.txt)

# A virtual environment that holds a lock; `ready` is written last, so a half one is made anew.
define environment
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Firstlight needs Python 3.11 or newer here; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	rm -f $(1)/ready; \
	echo "Installing $(2) into $(1)"; \
	$(PYTHON) -m venv --clear $(1) || { \
	  echo "$(PYTHON) cannot make a virtual environment." \
	    "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  --require-hashes --only-binary :all: --requirement $(2) || { \
	  echo "pip could not install $(2): check the way to the package index" \
	    "(PIP_INDEX_URL, proxy) and the free space." >&2; exit 1; }; \
	touch $(1)/ready
endef

# --- The tests ------------------------------------------------------------------------------

IN_DEV := PATH="$(CURDIR)/$(DEV)/bin:$$PATH"
RIG := $(DEV)/bin/python tests/rig/hosts

# Molecule takes as long as all the others, so it goes beside them.
BESIDE := molecule
PARTS := lint test-contract test-unit test-e2e test-browser

.PHONY: test
test: $(DEV)/ready ## Run everything that CI runs, molecule beside the rest
	@tests/all.sh $(BESIDE) $(PARTS)

.PHONY: lint
lint: $(DEV)/ready ## Check style, types and configuration
	$(IN_DEV) ruff check .
	$(IN_DEV) yamllint --strict .
	$(IN_DEV) ansible-lint
	$(IN_DEV) mypy
	$(IN_DEV) ansible-config validate -t all
	$(IN_DEV) antsibull-changelog lint
	$(IN_DEV) check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

.PHONY: test-contract
test-contract: $(DEV)/ready ## Hold the repository against its own rules
	$(IN_DEV) pytest -q tests/contract

.PHONY: test-unit
test-unit: $(DEV)/ready ## Run the unit tests
	$(IN_DEV) pytest -q -n 3 --dist worksteal tests/unit

.PHONY: test-e2e
test-e2e: $(DEV)/ready ## Run the demo in a clone, and every command of the documents
	$(IN_DEV) pytest -q tests/e2e

.PHONY: test-browser
test-browser: $(DEV)/ready ## Look at the report in Chromium, where there is one
	$(IN_DEV) pytest -q tests/browser

# It says so, and does no more, where no Docker engine can be had; with CI=true that is an error.
.PHONY: molecule
molecule: $(DEV)/ready ## Run the molecule scenarios, which takes a Docker engine or root
	$(IN_DEV) python tests/rig/scenarios.py

.PHONY: rig
rig: $(DEV)/ready ## Bring Docker and the images of the hosts that molecule plays on
	@$(RIG) images

.PHONY: rig-down
rig-down: $(DEV)/ready ## Remove those hosts, and stop Docker if the rig started it
	@$(RIG) teardown

.PHONY: faults
faults: rig ## Make each fault that an endpoint has to survive, and tell what became of it
	@$(RIG) engines llama-server
	$(IN_DEV) pytest -q tests/faults

.PHONY: test-gpu
test-gpu: $(DEV)/ready ## Hold what we say of this machine's NVIDIA GPUs against nvidia-smi
	$(IN_DEV) pytest -q -s tests/hardware

.PHONY: bench-gpu
bench-gpu: $(DEV)/ready ## Time gpu_facts on a machine with NVIDIA GPUs
	$(IN_DEV) python tests/bench/gpu_facts.py

.PHONY: bench
bench: $(DEV)/ready ## Time reading, planning and fetching, and the demo
	$(IN_DEV) python tests/bench/host_checks.py
	$(IN_DEV) python tests/bench/engine_log.py
	$(IN_DEV) python tests/bench/model_info.py
	$(IN_DEV) python tests/bench/snapshot_verify.py
	$(IN_DEV) python tests/bench/prefetch.py
	$(IN_DEV) python tests/bench/fleet_prefetch.py
	$(IN_DEV) python tests/bench/planning.py
	$(IN_DEV) python tests/bench/demo.py

.PHONY: bench-fleet
bench-fleet: rig ## Count what an unchanged host costs in a fleet of 5, 20 and 50, beside the usual way
	$(IN_DEV) python tests/bench/fleet.py

.PHONY: docs
docs: $(DEV)/ready ## Write docs/reference anew from specs and DOCUMENTATION
	$(IN_DEV) python docs/generate.py

.PHONY: lock
lock: $(DEV)/ready ## Write the locks anew from requirements/*.in
	$(IN_DEV) requirements/lock.sh

.PHONY: clean
clean: ## Remove the development environment and caches
	rm -rf $(DEV) .cache .pytest_cache .mypy_cache .ruff_cache .ansible .hypothesis

# One word per chore, the same for people and for CI. `make run` and `make test` need only make and a Python 3.

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# What is type-checked: every addon is a script of its own.
CODE   := mitm_cache tests bench $(wildcard addons/*.py)
# More arguments: make run ARGS="--help", make test ARGS="-k digest -x"
ARGS   ?=

.PHONY: help run demo test e2e faults soak bench conformance lint types format lock package image clean

help:
	@echo 'make run      set up and run the cache in the foreground (ARGS=... for more options)'
	@echo 'make demo     show a pull through the cache, twice, without a network'
	@echo 'make test     set up and run the tests'
	@echo 'make e2e      the full matrix of real clients and registries (root, Linux)'
	@echo 'make faults   many pulls while everything breaks, beside other caches (MITM_CACHE_FAULTS_SEED=...)'
	@echo 'make soak     half an hour of everything at once (MINUTES=...)'
	@echo 'make bench    side-by-side figures'
	@echo 'make conformance  the OCI conformance suite against a registry of its own (OCI_CONFORMANCE=PROGRAM)'
	@echo 'make image    the container image (ENGINE=podman, ARGS=...)'
	@echo 'make lint types format lock package clean'

# The CA of a checkout stays in the checkout: certs/ is ignored by git.
run: $(VENV)/run.stamp
	MITM_CACHE_CA_DIR=certs exec $(BIN)/mitm-cache serve $(ARGS)

demo: $(VENV)/run.stamp
	$(BIN)/mitm-cache demo $(ARGS)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m 'not slow and not faults and not soak' $(ARGS)

e2e: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m 'e2e or slow' $(ARGS)

faults: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m faults tests/faults $(ARGS)

MINUTES ?= 30
soak: $(VENV)/dev.stamp
	MITM_CACHE_SOAK_MINUTES=$(MINUTES) $(BIN)/python -m pytest -m soak tests/faults $(ARGS)

bench: $(VENV)/dev.stamp
	$(BIN)/python -m bench $(ARGS)

conformance: $(VENV)/dev.stamp
	OCI_CONFORMANCE="$(OCI_CONFORMANCE)" scripts/conformance

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy $(CODE)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

package: $(VENV)/dev.stamp
	$(BIN)/python -m hatchling build -d dist

# A health check is known to Docker's format only, which podman and buildah are told by their environment.
ENGINE ?= docker
image:
	BUILDAH_FORMAT=docker $(ENGINE) build --file Containerfile --tag mitm-cache $(ARGS) .

# One resolution for every platform and Python >= 3.12. The other two take their versions from the dev lock.
COMPILE = $(BIN)/uv pip compile --quiet --no-config --universal --python $(BIN)/python --python-version 3.12 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(ARGS)
lock: $(VENV)/dev.stamp
	$(COMPILE) --extra dev --group build pyproject.toml -o requirements-dev.lock
	$(COMPILE) -c requirements-dev.lock pyproject.toml -o requirements.lock
	$(COMPILE) -c requirements-dev.lock --group build -o requirements-build.lock

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- setting up ---------------------------------------------------------------------------------------------------
# pip compiles bytecode as it installs: importing mitmproxy takes 0.8 s with it, 2.6 s without.

$(BIN)/python:
	@python=$$(scripts/find-python) && echo "Setting up $(VENV) with $$python" && \
		{ "$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; }

$(VENV)/run.stamp: pyproject.toml requirements.lock requirements-build.lock $(BIN)/python
	$(PIP) install --quiet --compile --require-hashes -r requirements.lock -r requirements-build.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/run.stamp
	$(PIP) install --quiet --compile --require-hashes -r requirements-dev.lock
	@touch $@

# `make demo` and `make test` work on a fresh machine with Python 3.11+, make and a package index.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo garden test test-slow test-vllm test-engines check format lock clean compile

# A stamp per lock: installed again whenever the lock or the packaging changes.
$(VENV)/.%.stamp: requirements/%.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --require-hashes --requirement $<
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Engines have environments of their own. torch comes without a hash, since which build of it is taken is the
# machine's choice; the locks name everything else, so nothing is looked up.
TORCH := torch==2.13.0
.venv-%/.stamp: requirements/%.txt
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(TORCH)
	.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes --requirement $<
	@touch $@

# Servers that read what the router writes; none of them needs torch.
.venv-garden/.stamp: requirements/garden.txt
	$(PYTHON) -m venv --clear .venv-garden
	.venv-garden/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --requirement $<
	@touch $@

demo: $(VENV)/.demo.stamp
	$(BIN)/python examples/quickstart/demo.py

# Tests in two halves at once, for two cores: those in some folders, and all others.
define halves
@$(BIN)/python -m pytest -m $(1) $(2) &> $(VENV)/half.log & half=$$!; \
trap "kill $$half 2> /dev/null" EXIT; \
$(BIN)/python -m pytest -m $(1) $(addprefix --ignore=,$(2)); rest=$$?; \
wait $$half; half=$$?; cat $(VENV)/half.log; exit $$((rest ? rest : half))
endef

# Those that run the command line are one half: some have ports in common.
COMMANDS := tests/cli tests/seams tests/api
test: check
	$(call halves,"not slow",$(COMMANDS))

NO_COMMANDS := tests/containers tests/docker tests/load tests/planner tests/providers tests/router tests/simulation tests/spec
test-slow: $(VENV)/.dev.stamp .venv-garden/.stamp
	$(call halves,slow,$(NO_COMMANDS))
	$(MAKE) demo
	$(MAKE) test-engines

# Real vLLM servers, two and more at once: minutes, and 3 GiB of memory.
test-vllm: $(VENV)/.dev.stamp .venv-vllm/.stamp
	$(BIN)/python -m pytest -m vllm tests/engines

# Real servers of transformers and MLflow.
test-engines: $(VENV)/.dev.stamp .venv-engines/.stamp
	$(BIN)/python -m pytest -m engines tests/engines

# The peers of the router's tests: what each of them reads is compared.
garden: $(VENV)/.dev.stamp .venv-garden/.stamp
	$(BIN)/python -m pytest tests/router/http/test_garden.py

# Format, lint, layers, types.
check: $(VENV)/.dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }
	$(BIN)/mypy

format: $(VENV)/.dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Needs uv. The locks hold hashes and no index: pip's own configuration says where packages come from.
lock:
	@set -e; for extra in dev demo runtime; do \
	  args="--extra $$extra"; test $$extra = runtime && args=; \
	  test $$extra = dev || args="$$args --constraint requirements/dev.txt"; \
	  uv pip compile pyproject.toml $$args --quiet --generate-hashes --python-version 3.11 \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	    --output-file requirements/$$extra.txt > /dev/null; \
	done
	@set -e; for engine in vllm engines; do \
	  uv pip compile requirements/$$engine.in --override requirements/engines-overrides.in \
	    --quiet --generate-hashes --python-version 3.11 \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	    --output-file requirements/$$engine.txt > /dev/null; \
	done
	@uv pip compile requirements/garden.in --quiet --generate-hashes --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --output-file requirements/garden.txt > /dev/null

# The router's way of a request as machine code: less than half the time of the interpreter. What all its modules share
# lies outside the packages, where an editable install does not look.
compile: $(VENV)/.dev.stamp
	SERVESTATE_COMPILE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	ln -sf "$(CURDIR)"/servestate_router__mypyc.*.so $(VENV)/lib/python3*/site-packages/

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info
	find . -name "*.so" -not -path "./.venv*" -delete

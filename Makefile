# Every target works in a fresh checkout: .venv/ is made by the first that needs it, and remade when what it is made from
# changes. `make help` lists them.

VENV := .venv
PY := $(VENV)/bin/python
LINK := build/typing/transom

# The first Python that fits, not only one that is on the path: a version manager may leave a name that does not run.
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(FITS)' >/dev/null 2>&1 && echo $$p && break; done)

# A hundred processes of the tests import this package: none compiles what another has.
unexport PYTHONDONTWRITEBYTECODE

# How many processes `make walk` keeps busy.
WORKERS ?= 2

.PHONY: help demo test conformance planted walk bench genai peers draft swap recall families kill lint lock clean venv

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

demo: venv ## train a small model, write text with it and export it, in runs/demo
	$(PY) -m transom.cli.demo

test: venv ## run all tests, and the quick profile of the conformance suite, a process on each core
	$(PY) -m pytest --transom transom --transom-profile quick -n auto

conformance: venv ## prove every component, and those of examples/, in full, and write the worst figures into docs/conformance.md
	rm -rf build/examples && mkdir -p build/examples && cp -R examples build/examples/from  # pip builds in place
	$(PY) -m pip install -qq --disable-pip-version-check --no-index --no-deps --no-build-isolation \
		--target build/examples build/examples/from/differential build/examples/from/recurrence
	PYTHONPATH=build/examples $(PY) -m transom.conformance transom differential griffin --full --markdown docs/conformance.md

planted: venv ## run the conformance suite on planted faults, and write docs/planted.md
	PYTHONPATH=tests $(PY) -m planted

walk: venv ## walk every combination of attention, position, norm and topology: half an hour on two free cores
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(PY) -m walk --workers $(WORKERS)

bench: venv ## run the benchmarks
	$(PY) -m pytest -s -o timeout=900 benchmarks/bench_*.py
	$(PY) benchmarks/memory.py

genai: venv build/genai/.installed ## run exported folders in onnxruntime-genai, and compare its tokens with ours
	$(PY) benchmarks/genai.py build/genai/bin/python

# An environment of its own: its package names another onnxruntime, which would lie over ours.
build/genai/.installed:
	$(PY) -m venv build/genai
	build/genai/bin/pip install -qq --disable-pip-version-check numpy onnxruntime==1.32.0
	build/genai/bin/pip install -qq --disable-pip-version-check --no-deps onnxruntime-genai==0.18.0
	@touch $@

peers: build/peers/.installed ## put what benchmarks compare with into build/peers: PYTHONPATH=build/peers finds it

build/peers/.installed: benchmarks/peers.lock | venv
	$(PY) -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target $(@D) --requirement $<
	@touch $@

draft: venv ## measure what a draft saves, in docs/benchmarks.md
	$(PY) benchmarks/draft.py

swap: venv ## measure what swapping the attention does to held-out text, in docs/comparison.md
	$(PY) benchmarks/swap.py

recall: venv ## measure what each attention can recall, in docs/comparison.md
	$(PY) benchmarks/recall.py

families: venv ## measure every family against transformers, and write docs/families.md
	$(PY) tests/families/table.py

kill: venv ## kill trainings at 20 random moments: the final weights must be bit-equal
	$(PY) benchmarks/kill.py

lint: venv ## check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

lock: ## pin anew what .venv/ is made of, in requirements.lock, and what peers need besides
	$(PYTHON) .ci/lock.py

clean: ## remove .venv/ and whatever was built; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(VENV)/.installed | $(LINK)

# Type checkers find the package under its name through this link to the root.
$(LINK):
	@mkdir -p $(dir $@)
	@ln -s ../.. $@

# Without a build environment: the lock holds setuptools, newer than the one that a new .venv brings.
$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	$(PY) -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --editable .
	$(PY) -m pip check --disable-pip-version-check
	@touch $@

$(VENV)/.locked: requirements.lock
	@test -n "$(PYTHON)" || { \
		echo "make: needs Python 3.11, 3.12 or 3.13 with venv; name one with PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Making $(VENV)/ with $(PYTHON): some minutes, once"
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install -qq --disable-pip-version-check --no-compile --requirement requirements.lock
	@touch $@

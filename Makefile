PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PACKAGES_PIP := $(subst .venv,.venv-packages,$(PIP))
ZOO_PIP := $(subst .venv,.venv-zoo,$(PIP))
FRAMEWORKS_PIP := $(subst .venv,.venv-frameworks,$(PIP))
# Tests start hundreds of processes: where no bytecode may be kept, each would compile all our code anew.
unexport PYTHONDONTWRITEBYTECODE
# A worker a core; a file's tests stay together, since they share what is slow to make.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist loadfile

.PHONY: demo demo-decay test test-all test-gpu check bench docs atlas tables museum clean

# Each stamp is a finished install; a changed pyproject.toml or constraints.txt makes it anew.
.venv/.train: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("weightdecay needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/.report: .venv/.train
	$(PIP) --editable '.[report]'
	touch $@

.venv/.dev: .venv/.train
	$(PIP) --editable '.[dev]'
	touch $@

.venv/.docs: .venv/.dev
	$(PIP) --editable '.[docs]'
	touch $@

# Other people's optimizers, away from what is developed with.
.venv-packages/.ready: tests/packages/requirements.txt tests/packages/requirements-alone.txt pyproject.toml constraints.txt
	test -x .venv-packages/bin/python || $(PYTHON) -m venv .venv-packages
	$(PACKAGES_PIP) --requirement tests/packages/requirements.txt --editable .
	$(PACKAGES_PIP) --no-deps --requirement tests/packages/requirements-alone.txt
	touch $@

# Other people's models.
.venv-zoo/.ready: tests/zoo/requirements.txt tests/zoo/requirements-alone.txt pyproject.toml constraints.txt
	test -x .venv-zoo/bin/python || $(PYTHON) -m venv .venv-zoo
	$(ZOO_PIP) --requirement tests/zoo/requirements.txt --editable .
	$(ZOO_PIP) --no-deps --requirement tests/zoo/requirements-alone.txt
	touch $@

# Training frameworks and trackers, in which the integrations train.
.venv-frameworks/.ready: tests/frameworks/requirements.txt tests/frameworks/requirements-alone.txt pyproject.toml constraints.txt
	test -x .venv-frameworks/bin/python || $(PYTHON) -m venv .venv-frameworks
	$(FRAMEWORKS_PIP) --requirement tests/frameworks/requirements.txt --editable .
	$(FRAMEWORKS_PIP) --no-deps --requirement tests/frameworks/requirements-alone.txt
	touch $@

demo: .venv/.train
	$(BIN)/weightdecay train gpt3:nano
	@echo; echo "For comparison, models that count tokens, on the same held-out text:"
	@$(BIN)/python benchmarks/ngram_baselines.py

# What decay does to a text that is read many times: four runs of some four minutes on a core each, and their page.
demo-decay: .venv/.report
	$(BIN)/weightdecay study demo --seeds 1 --out .demo/decay
	$(BIN)/weightdecay report .demo/decay --out .demo/decay.html

# Decay bugs of public projects, audited: wrong, and mended.
museum: .venv/.train
	$(BIN)/python -m examples.museum

test: .venv/.dev
	$(PYTEST)

test-all: .venv/.docs .venv-packages/.ready .venv-zoo/.ready .venv-frameworks/.ready
	REQUIRE_BROWSER=1 $(PYTEST) -m '' --hypothesis-profile new-examples --ignore tests/packages --ignore tests/zoo/test_zoo.py --ignore tests/frameworks
	$(subst .venv,.venv-packages,$(PYTEST)) -m '' --dist worksteal tests/packages
	$(subst .venv,.venv-zoo,$(PYTEST)) -m '' tests/zoo
	$(subst .venv,.venv-frameworks,$(PYTEST)) -m '' tests/frameworks

# On a machine with a CUDA device; elsewhere each test is skipped by name.
test-gpu: .venv/.dev
	$(BIN)/pytest -m gpu -rs tests/gpu

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/check_links.py

bench: .venv/.dev
	@for script in $$(grep --files-with-matches __main__ benchmarks/*.py | xargs -n 1 basename --suffix .py); do \
		echo "== $$script"; $(BIN)/python -m benchmarks.$$script || exit 1; done

# The site of the documentation, in build/docs/html.
docs: .venv/.docs
	$(BIN)/python docs/make_site.py

# What each framework decays wrongly, on each architecture: docs/atlas/index.html.
atlas: .venv/.dev
	$(BIN)/python docs/make_atlas.py

# What the pages show as measured, measured anew; the table of optimizers is written where all packages are.
tables: .venv/.dev .venv-packages/.ready
	@for script in $(filter-out docs/make_optimizers.py docs/make_site.py,$(wildcard docs/make_*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done
	.venv-packages/bin/python docs/make_optimizers.py

clean:
	rm -rf .venv .venv-packages .venv-zoo .venv-frameworks dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

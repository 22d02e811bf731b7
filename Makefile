# The Python that makes the environment: `make demo PYTHON=python3.12` chooses another one.
# Without a choice, the first of these that is new enough.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.10; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

DEMO_IMAGE := demo_images/scene_1.png
DEMO_QUESTION := Subtract all squares. How many objects are left?
DEMO_FOLDER := results

# Two workers share the cores better when each computes with one thread.
WORKERS := 2
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
	--ignore tests/test_cluster.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-cluster test-newest test-lowest check docs clean

# Recording, interventions, prompts, stores and the command: what other versions of our libraries
# could break.
CORE := $(addprefix tests/test_,mass.py recording_parity.py recording_changes_nothing.py \
	recording_checks.py interventions.py interventions_parity.py refusals.py load.py prompt.py \
	trace.py cli.py lenses.py lens_measures.py families.py videos.py versions.py)
# An environment of its own for each end of what pyproject.toml allows.
NEWEST := .venv-newest
LOWEST := .venv-lowest
PIP := -m pip install --quiet --disable-pip-version-check

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## draw the attention of the small model that ships with the package
	$(BIN)/attnlens trend --image_path $(DEMO_IMAGE) --question "$(DEMO_QUESTION)" --mode back \
		--model_path testbed --save_folder $(DEMO_FOLDER) --device auto
	@echo "The pictures are in $(DEMO_FOLDER)/$(basename $(notdir $(DEMO_IMAGE)))/"

test: $(VENV)/.installed-dev ## run the tests, but for the slow ones
	$(TEST) -m "not slow"

test-slow: $(VENV)/.installed-dev ## run the slow tests
	$(TEST) -m slow

test-cluster: $(VENV)/.installed-cluster ## run the tests of workers on a local Ray cluster
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_cluster.py

test-newest: | $(NEWEST)/.created ## run the tests of the core with the newest versions that pyproject.toml allows
	$(NEWEST)/bin/python $(PIP) --upgrade --upgrade-strategy eager --editable ".[dev]"
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n $(WORKERS) $(CORE)
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n $(WORKERS) -m "not slow" tests/test_stores.py

test-lowest: $(LOWEST)/.installed-dev ## run the tests of the core with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 ATTNLENS_VERSIONS=lowest $(LOWEST)/bin/python -m pytest -n $(WORKERS) $(CORE)
	OMP_NUM_THREADS=1 ATTNLENS_VERSIONS=lowest $(LOWEST)/bin/python -m pytest -n $(WORKERS) -m "not slow" tests/test_stores.py

check: $(VENV)/.installed-dev ## run the linter, the formatter's check and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## build the documents into site/; a dead link is an error
	$(BIN)/python tools/reference_pages.py
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml
	$(BIN)/python tools/check_site.py
	@echo "Open site/index.html"

clean: ## remove the environment that make made
	rm -rf $(VENV) $(NEWEST) $(LOWEST)

# A stamp is written after everything before it went well, so that a broken install is repeated
# and a good one is not.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing attnlens into $(VENV) (a few minutes the first time)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests and checks need into $(VENV)"
	$(INSTALL) --editable ".[dev]"
	@touch $@

$(VENV)/.installed-cluster: $(VENV)/.installed-dev
	@echo "Installing Ray into $(VENV)"
	$(INSTALL) --editable ".[cluster]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing what the documents need into $(VENV)"
	$(INSTALL) --editable ".[docs]"
	@touch $@

$(LOWEST)/.installed-dev: pyproject.toml tools/lower_bounds.py $(VENV)/.installed-dev | $(LOWEST)/.created
	$(BIN)/python tools/lower_bounds.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python $(PIP) -c $(LOWEST)/constraints.txt --editable ".[dev]"
	@touch $@

$(VENV)/.created $(NEWEST)/.created $(LOWEST)/.created:
	@test -n "$(PYTHON)" || { echo "attnlens needs Python 3.10 or newer; none was found (name one with PYTHON=...)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
		|| { echo "attnlens needs Python 3.10 or newer, which PYTHON=$(PYTHON) is not" >&2; exit 1; }
	"$(PYTHON)" -m venv $(@D)
	@touch $@

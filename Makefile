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

.DEFAULT_GOAL := help
.PHONY: help demo test check clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## draw the attention of the small model that ships with the package
	$(BIN)/attnlens trend --image_path $(DEMO_IMAGE) --question "$(DEMO_QUESTION)" --mode back \
		--model_path testbed --save_folder $(DEMO_FOLDER) --device auto
	@echo "The pictures are in $(DEMO_FOLDER)/$(basename $(notdir $(DEMO_IMAGE)))/"

test: $(VENV)/.installed-dev ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/.installed-dev ## run the linter, the formatter's check and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the environment that make made
	rm -rf $(VENV)

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

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "attnlens needs Python 3.10 or newer; none was found (name one with PYTHON=...)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
		|| { echo "attnlens needs Python 3.10 or newer, which PYTHON=$(PYTHON) is not" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

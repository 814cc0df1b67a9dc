# make quickstart            real cells in, a model and what it says out
# make quickstart COUNTS=F   the same for any raw-count h5ad file F (LABEL=C: its obs column of labels)
# make test                  lint and the quick tests
# make slow                  the tests that take longer
# make docs                  the documentation site, its notebooks executed (docs/_build/html)
# make audit                 known vulnerabilities of what is installed (asks osv.dev: needs the network)
# make aot                   compile the pretraining step for TPUs and GPUs that are not there (6 GB)
#
# PYTHON chooses the interpreter (3.11 or newer), VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
COUNTS ?=
LABEL ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
CREATED := $(VENV)/.created
DEMO := $(VENV)/.installed-demo
TEST := $(VENV)/.installed-test
DOCS := $(VENV)/.installed-docs
BROWSER := $(VENV)/.installed-browser
AOT := $(VENV)/.installed-aot
AUDIT := $(VENV)/.installed-audit
METADATA := pyproject.toml setup.py

.PHONY: help quickstart test slow docs audit aot lint

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: $(DEMO)
	@$(BIN)/python launch/quickstart.py \
	  $(if $(COUNTS),--counts="$(COUNTS)") $(if $(LABEL),--label="$(LABEL)")

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu and not tpu" $(PYTEST_ARGS)

slow: $(BROWSER) $(DOCS)
	$(BIN)/python -m pytest -m "slow and not gpu and not tpu" $(PYTEST_ARGS)

docs: $(DOCS)
	rm -rf docs/_build docs/commands
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build/html

# OSV fails where it cannot be reached. Asked of a mirror of PyPI that knows nothing of the kind,
# pip-audit finds "no known vulnerabilities" in packages that it skipped.
audit: $(AUDIT)
	$(BIN)/pip-audit --local --skip-editable --progress-spinner off --vulnerability-service osv

aot: $(AOT)
	$(BIN)/python -m pytest -m "aot_tpu or aot_cuda" $(PYTEST_ARGS)
	$(BIN)/python benchmarks/compile_ahead.py

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The stamps make repeated calls quick; a change of the package metadata installs again.
$(DEMO): $(METADATA) | $(CREATED)
	@echo "Installing the project and what it needs into $(VENV):"
	@$(BIN)/python launch/install.py --editable ".[demo]"
	@touch $@

$(TEST): $(METADATA) | $(CREATED)
	@echo "Installing the project and what its tests need into $(VENV):"
	@$(BIN)/python launch/install.py --editable ".[test,parity]"
	@touch $(DEMO) $@

$(DOCS): $(METADATA) | $(CREATED)
	@echo "Installing the project and what its documentation needs into $(VENV):"
	@$(BIN)/python launch/install.py --editable ".[docs]"
	@touch $(DEMO) $@

$(BROWSER): $(TEST)
	@echo "Installing what drives a browser for the tests of pages; it uses the machine's Chromium:"
	@$(BIN)/python launch/install.py --editable ".[browser,explore]"
	@touch $@

$(AUDIT): $(TEST)
	@echo "Installing what asks for vulnerabilities into $(VENV):"
	@$(BIN)/python launch/install.py --editable ".[audit]"
	@touch $@

$(AOT): $(TEST)
	@echo "Installing the compilers for TPUs and GPUs into $(VENV):"
	@$(BIN)/python launch/install.py --editable ".[aot,aot_cuda]"
	@touch $@

# Safe to repeat: `venv` completes a folder that an interrupted run left half made.
$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is not there or is older than Python 3.11;" \
	    "name a newer one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

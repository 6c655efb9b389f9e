# All that a fresh machine needs: Python >= 3.10, make and git. `make` alone says what there is.
# Another interpreter: make PYTHON=python3.12 test      A part of the tests: make test ARGS="tests/spec -k plan"

SHELL  := bash
PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
EXTRAS := build,camera,onnxruntime,openvino,test
GATE   := --cov=edgemae.spec --cov=edgemae.device --cov=edgemae.profiling --cov=edgemae.retrieval --cov-fail-under=90

# pip prints some 300 lines; these few tell that it is alive. Its errors go to stderr and are not filtered.
PROGRESS := awk '/^(Collecting|Processing) / { if (++n % 20 == 0) print "  " n " packages found"; fflush() } \
                 /^Installing collected/ && n > 1 { print "  unpacking " n; fflush() }'

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## Create .venv and install the pinned versions

demo: $(STAMP) ## Run the whole way on handwritten digits: a bundle and a report in runs/demo
	$(BIN)/edgemae demo --output runs/demo $(ARGS)

# One process on purpose: several tests measure time, and a second worker on two cores would be the interference
# that they look for. pytest comes last, so that its counts are the last line.
test: lint ## Check style and types, then run all tests with coverage
	@case "$(ARGS)" in "") gate="$(GATE)" ;; *) gate="" ;; esac; $(BIN)/python -m pytest $$gate $(ARGS)

# Benchmarks run for minutes, seldom: types tell that a call of edgemae has changed before an evening is lost to it.
LOOSE = --allow-untyped-calls --no-warn-unused-ignores $(addprefix --disable-error-code=,misc no-any-return union-attr func-returns-value)
lint: $(STAMP) ## Check style and types only
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@MYPYPATH=tools:. $(BIN)/python -m mypy $(LOOSE) tools/*.py tools/support/*.py

clean: ## Remove .venv, caches and runs
	rm -rf $(VENV) runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an install that was broken off starts again. The build tools come first and pinned, so
# that what is built from source (this project, NVIDIA's two wrappers) needs nothing from outside constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("edgemae needs Python 3.10 or newer, and $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v[:2])'
	@echo "installing into $(VENV) (about 2 GiB on disk; a minute or two, longer on a slow connection)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q -c constraints.txt hatchling setuptools
	@set -o pipefail; \
	$(BIN)/python -m pip install --progress-bar off --no-build-isolation -c constraints.txt -e ".[$(EXTRAS)]" | $(PROGRESS)
	@touch $(STAMP)
	@echo "installed"

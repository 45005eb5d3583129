# make: set up .venv and compute the atlas.  make test: run the tests, but for the slow ones, which
# make test-slow runs, and those on a Slurm, which make test-slurm runs.  make lint: check the code.
PYTHON ?= python3
CORES ?= all
# Add peers to compare with PyTorch, flax and equinox too.
TEST_EXTRAS ?= datasets,test
TEST_PROCESSES ?= auto
VENV := .venv
BIN := $(VENV)/bin
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) \
  --dist loadfile --no-loadscope-reorder
# An empty value keeps pip from asking for a newer version of itself.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: all report test test-slow test-slurm lint format clean

all: $(VENV)/.installed
	$(BIN)/snakemake --cores $(CORES)
	$(MAKE) --no-print-directory report

report: $(VENV)/.installed
	$(BIN)/snakemake --cores 1 --quiet all --report results/report.html
	@echo "Report: results/report.html   Figures: results/figures   Scorecard: results/claims.md"

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow $(PYTEST_ARGS)

# Starts a Slurm of its own, as root on Debian with its packages; elsewhere it skips and says why.
test-slurm: $(VENV)/.installed-test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -p no:xdist --exitfirst tests/slurm $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

clean:
	rm -rf $(VENV) .snakemake results

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing the pinned packages into $(VENV) (about a minute)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing what the tests need, TensorFlow included (about a minute)"
	$(PIP) --editable '.[$(TEST_EXTRAS)]'
	@touch $@

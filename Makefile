# Two commands: `make demo` and `make test`. The environment is made in .venv, with the machine's own pip settings.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --durations 20
# Of each sort of run that is killed, and of each fault, in `make test-all`.
KILLS ?= 8
REPEATS ?= 2
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test types suite test-all faults environment lock clean

environment: .venv/installed

.venv/installed: pyproject.toml requirements.lock requirements.hashes
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; say make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.hashes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -e '.[dev]'
	touch $@

data/demo/slides.csv: | environment
	$(BIN)/mil demo data/demo

demo: environment data/demo/slides.csv
	$(BIN)/snakemake --workflow-profile configs/profiles/local --configfile configs/cohorts/demo.yaml --cores $(CORES)
	@echo "The report: $(CURDIR)/results/demo/report/index.html"

test: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(MAKE) --no-print-directory --jobs 2 types suite

# Pyright computes on one core for a minute: at the same time as the tests.
types: environment
	$(BIN)/pyright

suite: environment
	$(PYTEST) -n $$(($(CORES) + 1)) -m "not extended"

# What `make test` leaves out: more kills and damaged files, long simulations, a Slurm, long federations. The last two wait more than
# they compute, so there are two processes more than cores.
test-all: environment
	KILLS=$(KILLS) REPEATS=$(REPEATS) $(PYTEST) -n $$(($(CORES) + 2)) -m "extended or repeated"

# Faults made on purpose and counted, in docs/reliability.md.
faults: environment
	$(BIN)/python benchmarks/faults.py

# Anew from pyproject.toml: no address in it, and torch with its CUDA libraries left to the machine's pip settings. requirements.hashes
# holds the SHA-256 of every file of the same versions; without torch, because pip wants a hash for all or for none.
lock:
	uv pip compile pyproject.toml --extra dev --universal --no-header --no-emit-index-url --no-annotate --python-version 3.11 --upgrade \
	| sed -E '/^(nvidia-|cuda-|triton=)/d; s/^torch==.*/torch>=2.10/; s/^torchvision==.*/torchvision>=0.25/' > requirements.lock
	grep -vE '^(torch|torchvision)>=' requirements.lock \
	| uv pip compile - --no-deps --generate-hashes --universal --no-header --no-emit-index-url --no-annotate --python-version 3.11 \
	> requirements.hashes

clean:
	rm -rf results .snakemake

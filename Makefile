# Two commands for a fresh machine: `make quickstart` and `make test`. `make` alone lists the targets.
# Further flags in ARGS:           make quickstart ARGS="--trials 20"     make test ARGS="-k strategies"
# Another Python (3.11 to 3.13):   make test PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-20s %s\n", $$1, $$2 }'

quickstart: .venv/.users ## a whole sweep without any download: pretrain on printed letters, transfer to handwritten digits, rank, report
	$(BIN)/python -m sweeps.quickstart $(ARGS)

ui: $(if $(CLUSTER),.venv/.clusters,.venv/.users) ## open MLflow on the sweeps in runs/; make ui CLUSTER=ray_cluster.yaml opens that of the cluster
	$(BIN)/python -m $(if $(CLUSTER),sweeps.cluster ui $(CLUSTER),sweeps ui) $(ARGS)

cluster: .venv/.clusters ## check the requirements of a cluster on AWS, then start it: ray_cluster.yaml, or CLUSTER=FILE
	$(BIN)/python -m sweeps.cluster up $(or $(CLUSTER),ray_cluster.yaml) $(ARGS)

test: .venv/.developers ## run the tests except the slow ones, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

nightly: .venv/.developers ## run the slow tests that .ci/run leaves out: more networks, storages and machines; then audit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m nightly --durations=30 tests $(ARGS)
	@$(MAKE) --no-print-directory audit

# An audit counts only if it finds the holes of an old Pillow: mirrors of PyPI answer without the database.
audit: ## look up constraints.txt in the database of known holes (pip-audit), where it can be reached
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && echo 'pillow==8.0.0' > $$fresh/probe.txt && \
	audit="$$fresh/bin/pip-audit --no-deps --disable-pip --progress-spinner off -r" && \
	if $(PYTHON) -m venv $$fresh && $$fresh/bin/python -m pip install -qq pip-audit && $$audit $$fresh/probe.txt 2>/dev/null | grep -q 'PYSEC\|GHSA\|CVE'; \
	then $$audit constraints.txt; else echo 'audit skipped: the database of known holes cannot be reached'; fi

mutations: .venv/.developers ## remove one protection at a time; its test must then fail (an hour). ARGS=watchdog selects
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations.py $(ARGS)

lint: .venv/.developers ## check style, types and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.developers ## compare with a plain training script: make bench ARGS="probes --smoke"
	$(BIN)/python -m benchmarks.run $(ARGS)

constraints: ## update constraints.txt to what pip resolves today, in a temporary environment of 5 GB
	fresh=$$(mktemp -d) && $(PYTHON) -m venv $$fresh && $$fresh/bin/python -m pip install -e '.[dev,hub,metric,zero-shot,dashboard,aws,gcp]' && \
	{ grep '^#' constraints.txt; $$fresh/bin/python -m pip freeze --exclude-editable | grep '=='; } > constraints.new && \
	mv constraints.new constraints.txt && rm -r $$fresh

# A broken or incomplete environment, or one with the wrong Python, is recreated; a working one is updated.
.venv/.users: pyproject.toml constraints.txt
	$(BIN)/python -c 'import sys, pip; assert (3, 11) <= sys.version_info < (3, 14)' 2>/dev/null || \
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

.venv/.clusters: .venv/.users
	$(BIN)/python -m pip install -c constraints.txt -e '.[aws]'
	@touch $@

.venv/.developers: .venv/.users
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: help quickstart ui cluster test nightly audit mutations lint bench constraints

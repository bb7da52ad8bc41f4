# Two commands for a fresh machine: `make quickstart` and `make test`. `make` alone lists what there is.
# Further flags go through ARGS:   make quickstart ARGS="--trials 20"     make test ARGS="-k strategies"
# Another Python (3.11 to 3.13):   make test PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-20s %s\n", $$1, $$2 }'

quickstart: .venv/.users ## the whole job on an embedded default: pretrain on digits 0-4, transfer to 5-9, rank, report
	$(BIN)/python -m sweeps.quickstart $(ARGS)

ui: $(if $(CLUSTER),.venv/.clusters,.venv/.users) ## MLflow over the sweeps in runs/; make ui CLUSTER=ray_cluster.yaml opens the cluster's
	$(BIN)/python -m $(if $(CLUSTER),sweeps.cluster ui $(CLUSTER),sweeps ui) $(ARGS)

cluster: .venv/.clusters ## checks what a cluster on AWS needs, then starts it: ray_cluster.yaml, or CLUSTER=FILE
	$(BIN)/python -m sweeps.cluster up $(or $(CLUSTER),ray_cluster.yaml) $(ARGS)

test: .venv/.developers ## the tests, without the slow ones; two at a time, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

nightly: .venv/.developers ## the slow tests that .ci/run leaves out: more networks, storages and machines
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m nightly --durations=30 $(ARGS)

lint: .venv/.developers ## style, types, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.developers ## this against the script that one would write instead: make bench ARGS="probes --smoke"
	$(BIN)/python -m benchmarks.run $(ARGS)

constraints: ## constraints.txt anew: what pip would choose today, found out in an environment of its own (5 GB)
	fresh=$$(mktemp -d) && $(PYTHON) -m venv $$fresh && $$fresh/bin/python -m pip install -e '.[dev,hub,metric,dashboard,aws,gcp]' && \
	{ grep '^#' constraints.txt; $$fresh/bin/python -m pip freeze --exclude-editable | grep '=='; } > constraints.new && \
	mv constraints.new constraints.txt && rm -r $$fresh

# An environment that is broken, half made or of the wrong Python is made anew; one that works is brought up to date.
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

.PHONY: help quickstart ui cluster test nightly lint bench constraints

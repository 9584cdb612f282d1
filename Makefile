# Everything a person or the CI does with this tree.  Needs make, git and Python 3.11 or newer;
# the environment is ./.venv, made from the lock file.

.DEFAULT_GOAL := help
.NOTPARALLEL:
BIN := .venv/bin
# How many test processes at once; PYTEST adds options, for example PYTEST="-k joining".
JOBS ?= 2
PYTEST ?=
COVERAGE := --cov --cov-report=

.PHONY: help env demo test test-media test-acceptance lint types contracts unit integration coverage format bench docs lock wheel image clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1   \2/p' $(MAKEFILE_LIST)

env:  ## makes ./.venv from the lock file (PYTHON=... chooses the interpreter)
	@sh deploy/make-env.sh

demo: env  ## three nodes find each other over mDNS and convert one film together (FILM=path takes your own)
	@$(BIN)/python deploy/demo.py $(if $(FILM),--film "$(FILM)")

test: lint types contracts unit integration coverage  ## everything that CI runs

lint: env  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env  ## mypy and pyright, both strict
	$(BIN)/mypy
	$(BIN)/pyright

contracts: env  ## who may import whom
	$(BIN)/lint-imports

unit: env  ## all tests but those with real processes and networks
	rm -f .coverage .coverage.*
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal --ignore=tests/integration $(COVERAGE) $(PYTEST)

integration: env  ## tests with real processes, networks and FFmpeg, one after the other: they measure times
	$(BIN)/pytest -q tests/integration $(COVERAGE) --cov-append $(PYTEST)

test-media: env  ## every film by every profile, whole and split; bad films; cancelling (half an hour; DARKSTREAM_TEST_FFMPEG=program:program adds FFmpegs)
	$(BIN)/pytest -q -m media -n $(JOBS) tests/integration $(PYTEST)

test-acceptance: env  ## tests that are too long for every change: floods, slow links, full disks
	$(BIN)/pytest -q -m acceptance tests $(PYTEST)

coverage: env  ## coverage of the last `make unit integration`, with its thresholds
	$(BIN)/coverage report --skip-covered --fail-under=80
	$(BIN)/coverage report --include='mesh/*,ledger/*' --format=total
	@$(BIN)/coverage report --include='mesh/*,ledger/*' --fail-under=85 >/dev/null \
		|| { echo "coverage of mesh and ledger is below 85 %" >&2; exit 1; }

format: env  ## ruff format, and what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env  ## all benches, quick (one: .venv/bin/python bench/bench_idle.py)
	@for bench in bench/bench_*.py; do $(BIN)/python $$bench --quick || exit 1; done

docs: env  ## writes the generated pages of docs/ anew
	$(BIN)/python docs/generate.py

lock:  ## solves the locks anew (needs uv)
	@command -v uv >/dev/null || { echo "error[lock]: needs uv; pipx install uv" >&2; exit 2; }
	uv pip compile --quiet --upgrade $(LOCKED) --extra build pyproject.toml -o requirements.lock
	uv pip compile --quiet --upgrade $(LOCKED) --extra build --extra dev pyproject.toml -o requirements-dev.lock
LOCKED := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

wheel: env  ## dist/darkstream-*.whl
	$(BIN)/python -m hatchling build -t wheel

image: ## the container image darkstream
	docker build -t darkstream .

clean:  ## removes what make made, the environment too
	rm -rf .venv dist build demo-output htmlcov .coverage .coverage.* \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find mesh ledger node tests bench docs deploy -name __pycache__ -type d -prune -exec rm -rf {} +

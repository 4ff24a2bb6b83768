# Two commands matter: `make run` and `make test`. The others are for maintainers.
PYTHON ?=
COVERAGE ?= no
WRITE ?= no
export PYTHON COVERAGE WRITE
BIN = .venv/bin
SETUP = PYTHON='$(PYTHON)' scripts/setup-venv.sh

.PHONY: run stop test slow faults mutation cluster clients check lint types schemas lock bench fresh clean

run:  ## set everything up, serve the embedded model and ask it a question
	@$(SETUP) run
	@$(BIN)/orchestrate up quickstart --yes

stop:  ## stop everything that `make run` started
	@$(SETUP) run
	@$(BIN)/orchestrate down quickstart --yes

test:  ## set everything up and run the tests; COVERAGE=yes measures their coverage as well
	@$(SETUP) dev
	@scripts/run-tests.sh -m "not slow and not cluster and not clients"

slow:  ## the tests that take too long for `make test`; those of `make faults` apart
	@$(SETUP) dev
	@scripts/run-tests.sh -m "slow and not cluster and not clients" --ignore tests/faults

faults:  ## what endpoints, networks and clients do wrong, each with its exact outcome
	@$(SETUP) dev
	@scripts/run-tests.sh -m "not cluster" tests/faults

mutation:  ## change the gateway's decisions in small ways and print how many of them the tests notice (half an hour)
	@$(SETUP) dev
	scripts/mutation.sh

cluster:  ## several hosts as network namespaces: needs root, sshd and ip
	@$(SETUP) dev
	@scripts/run-tests.sh -m cluster

clients:  ## real clients from the registries against real backends; WRITE=yes writes docs/compatibility.md
	@$(SETUP) dev
	@scripts/run-clients.sh

check: lint types  ## lint, format, strict types, scripts, fresh schemas
	$(BIN)/python -m schemas.export --check

lint:
	@$(SETUP) dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck scripts/*.sh .ci/run

types:
	@$(SETUP) dev
	$(BIN)/mypy

schemas:  ## write schemas/json and docs/reference.md from the types
	@$(SETUP) dev
	$(BIN)/python -m schemas.export

lock:  ## resolve the dependencies again
	@$(SETUP) dev
	scripts/lock.sh

bench:  ## side-by-side benchmarks; prints ratios
	@$(SETUP) dev
	$(BIN)/python -m bench

fresh:  ## what a new user does: clone, make run, again, make stop
	@scripts/fresh-clone.sh

clean:
	rm -rf .venv .cache build *.egg-info

#!/bin/sh
# Runs the tests of other people's clients; arguments go to pytest. Their environments are made below .cache/clients, once.
# WRITE=yes writes docs/compatibility.md from what was seen; with `-k` the sections of the clients that ran.
# With ORCHESTRATE_REQUIRE_CLIENTS=1 a client that cannot be installed is a failure, otherwise its tests are skipped and
# say so.
set -eu
cd "$(dirname "$0")/.."
[ "${WRITE:-no}" = yes ] && export ORCHESTRATE_WRITE_COMPATIBILITY=yes
# One process: everything is started once, and answers are compared while nobody else asks.
exec .venv/bin/python -m pytest -p no:xdist -p no:randomly -rsxX --durations 5 "$@" tests/clients

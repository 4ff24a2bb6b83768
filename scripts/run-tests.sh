#!/bin/sh
# Runs the test-suite with coverage, subprocesses included, and prints the coverage. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
rm -f .coverage .coverage.*
status=0
.venv/bin/coverage run -m pytest --numprocesses 2 --dist loadscope "$@" || status=$?
.venv/bin/coverage combine --quiet || true # a process that a test killed may have left half a file
.venv/bin/coverage report
exit "$status"

#!/bin/sh
# Runs the test-suite; arguments go to pytest. With COVERAGE=yes it also measures the coverage, subprocesses included,
# and prints it: that makes pure Python take about twice as long.
set -eu
cd "$(dirname "$0")/.."
# Hundreds of short programs are started: without compiled modules each would compile them again.
unset PYTHONDONTWRITEBYTECODE
# Modules are handed out as tests/conftest.py sorts them, the long ones first, and not by their number of tests.
set -- -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder "$@"
if [ "${COVERAGE:-no}" != yes ]; then
    exec .venv/bin/python "$@"
fi
rm -f .coverage .coverage.*
status=0
.venv/bin/coverage run "$@" || status=$?
.venv/bin/coverage combine --quiet || true # a process that a test killed may have left half a file
.venv/bin/coverage report
exit "$status"

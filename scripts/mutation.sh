#!/bin/sh
# Changes the gateway's decisions in small ways, one at a time, and prints how many of these mutants the tests notice.
# Mutants that survive are listed: each is a test that is missing, or a change that means nothing.
#   scripts/mutation.sh                the breaker, the choice of an endpoint and the table of outcomes
#   scripts/mutation.sh health.py ...  other modules of runtime/gateway/routing
# Everything happens in .cache/mutation, with a virtual environment of its own beside the project's.
set -eu
cd "$(dirname "$0")/.."
MUTMUT=mutmut==3.8.1
LEAST=90 # percent
[ $# -gt 0 ] || set -- breaker.py select.py outcome.py

root=$PWD
work=$root/.cache/mutation
venv=$work/venv
tree=$work/tree
if [ ! -x "$venv/bin/mutmut" ]; then
    rm -rf "$venv"
    .venv/bin/python -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$MUTMUT"
    # The project's libraries, but not the project itself: what is imported has to be the mutants.
    "$venv/bin/python" - "$root/.venv" <<'PYTHON'
import pathlib, sys, sysconfig
(libraries,) = pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages")
pathlib.Path(sysconfig.get_path("purelib"), "zz_project.pth").write_text(f"{libraries}\n")
PYTHON
fi

rm -rf "$tree"
mkdir -p "$tree/tests/runtime/gateway"
cp -r runtime schemas "$tree"
cp -r tests/fakes tests/ports.py tests/__init__.py "$tree/tests"
cp tests/runtime/__init__.py "$tree/tests/runtime"
cp -r tests/runtime/gateway/__init__.py tests/runtime/gateway/harness.py tests/runtime/gateway/routing \
    "$tree/tests/runtime/gateway"
find "$tree" -name __pycache__ -prune -exec rm -r {} +
{
    echo "[mutmut]"
    echo "source_paths=runtime"
    echo "only_mutate="
    for module in "$@"; do echo "    runtime/gateway/routing/$module"; done
    echo "also_copy="
    echo "    schemas"
    echo "pytest_add_cli_args_test_selection="
    echo "    tests/runtime/gateway/routing"
    echo "pytest_add_cli_args="
    echo "    -p"
    echo "    no:randomly"
    echo "    -p"
    echo "    no:xdist"
    echo "[tool:pytest]"
    echo "asyncio_mode = auto"
} >"$tree/setup.cfg"
cat >"$tree/tests/conftest.py" <<'PYTHON'
from hypothesis import settings

settings.register_profile("mutation", derandomize=True, database=None, deadline=None)
settings.load_profile("mutation")
PYTHON

cd "$tree"
PATH=$venv/bin:$PATH "$venv/bin/mutmut" run
"$venv/bin/mutmut" results
"$venv/bin/mutmut" export-cicd-stats >/dev/null
"$venv/bin/python" - mutants/mutmut-cicd-stats.json "$LEAST" <<'PYTHON'
import json, sys
stats = json.load(open(sys.argv[1]))
noticed = stats["killed"] + stats.get("timeout", 0) + stats.get("segfault", 0)
total = stats["total"] - stats.get("skipped", 0)
share = 100 * noticed / total
print(f"{noticed} of {total} mutants noticed: {share:.1f} %; {stats['survived']} survived, {stats['no_tests']} untested")
sys.exit(share < float(sys.argv[2]))
PYTHON

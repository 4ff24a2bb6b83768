#!/bin/sh
# Makes .venv and installs the locked dependencies. Usage: scripts/setup-venv.sh run|dev
# Does nothing when nothing has changed since the last time; what `dev` installs is enough for `run`.
set -eu

kind=${1:-run}
root=$(cd "$(dirname "$0")/.." && pwd)
venv="$root/.venv"

case "$kind" in
    run) lock="$root/requirements.lock" ;;
    dev) lock="$root/requirements-dev.lock" ;;
    *)
        echo "setup-venv: '$kind' is not one of: run, dev" >&2
        exit 64
        ;;
esac

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$name" >/dev/null 2>&1 && is_new_enough "$name"; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

quietly() {
    if ! "$@" >"$venv/setup.log" 2>&1; then
        cat "$venv/setup.log" >&2
        echo "setup-venv: this failed: $*" >&2
        echo "Check the network or the package index that pip is configured with, then run it again." >&2
        exit 1
    fi
}

# The texts decide: a change of a lock or of the entry points installs again, nothing else does.
stamp=$(cksum "$root/requirements.lock" "$root/requirements-dev.lock" "$root/pyproject.toml" | cut -d' ' -f1,2 | tr '\n' ' ')
have=$(cat "$venv/.stamp" 2>/dev/null || true)
# A checkout that was moved, or a Python that was removed, leaves an environment that does not start.
is_usable() {
    "$venv/bin/python" -c 'import orchestrator, sys; sys.exit(not orchestrator.__file__.startswith(sys.argv[1]))' "$root/" \
        >/dev/null 2>&1 && "$venv/bin/orchestrate" --version >/dev/null 2>&1
}
if [ "$have" = "$kind $stamp" ] || [ "$have" = "dev $stamp" ]; then
    if is_usable; then
        exit 0
    fi
    rm -rf "$venv"
fi

if ! python=$(find_python); then
    found=$("${PYTHON:-python3}" -V 2>&1 || echo "no ${PYTHON:-python3}")
    echo "orchestrate needs Python 3.11 or newer; found: $found." >&2
    echo "Install a newer Python and run this again, or name one: make run PYTHON=/path/to/python3.12" >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ] || ! is_new_enough "$venv/bin/python"; then
    echo "Creating .venv with $("$python" -V)"
    if ! "$python" -m venv --clear "$venv"; then
        echo "setup-venv: $python cannot make a virtual environment." >&2
        echo "On Debian and Ubuntu: apt install python3-venv, then run this again." >&2
        exit 1
    fi
fi
rm -f "$venv/.stamp"
echo "Installing the locked dependencies, about 400 MB the first time"
export PIP_DISABLE_PIP_VERSION_CHECK=1
quietly "$venv/bin/python" -m pip install --require-hashes -r "$lock"
quietly "$venv/bin/python" -m pip install --no-deps --no-build-isolation --no-index -e "$root"
echo "$kind $stamp" >"$venv/.stamp"

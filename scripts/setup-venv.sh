#!/bin/sh
# Makes .venv and installs the locked dependencies. Usage: scripts/setup-venv.sh run|dev
# Does nothing when the lock has not changed since the last time.
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

if ! python=$(find_python); then
    found=$("${PYTHON:-python3}" -V 2>&1 || echo "no ${PYTHON:-python3} at all")
    echo "orchestrate needs Python 3.11 or newer; found: $found." >&2
    echo "Install a newer Python and run this again, or name one: make run PYTHON=/path/to/python3.12" >&2
    exit 1
fi

# The lock's text decides: a change of the lock or of the entry points installs again, nothing else does.
stamp=$(cat "$lock" "$root/pyproject.toml" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
have=$(cat "$venv/.stamp" 2>/dev/null || true)
if [ "$have" = "$kind $stamp" ] || [ "$have" = "dev $(cat "$root/requirements-dev.lock" "$root/pyproject.toml" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')" ]; then
    exit 0
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
echo "Installing locked dependencies (about 400 MB the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e "$root"
echo "$kind $stamp" >"$venv/.stamp"

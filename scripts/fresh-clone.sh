#!/bin/sh
# Does what a new user does, in a clone of the last commit with a state directory of its own:
# `make run`, `make run` again, `make stop`; and checks what they saw.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
export ORCHESTRATE_STATE="$work/state"
cleanup() {
    make -C "$work/clone" stop >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT INT TERM

git clone --quiet "$root" "$work/clone"

expect() {
    if ! grep -q "$1" "$work/out"; then
        cat "$work/out"
        echo "fresh-clone: '$1' is missing in the output above" >&2
        exit 1
    fi
}

pids() {
    "$work/clone/.venv/bin/orchestrate" --conf "$work/clone/conf" status quickstart | grep -o 'pid [0-9]*' | sort
}

make -C "$work/clone" run >"$work/out" 2>&1 || { cat "$work/out"; exit 1; }
cat "$work/out"
expect 'Paris'
expect 'curl http://127.0.0.1:8000'
expect 'make stop'
before=$(pids)

make -C "$work/clone" run >"$work/out" 2>&1 || { cat "$work/out"; exit 1; }
expect 'No changes'
expect 'Paris'
if grep -q -i -e 'fetch' -e 'convert' -e 'install' "$work/out" || [ "$before" != "$(pids)" ]; then
    cat "$work/out"
    echo "fresh-clone: the second run did something again" >&2
    exit 1
fi

make -C "$work/clone" stop >"$work/out" 2>&1 || { cat "$work/out"; exit 1; }
expect 'Everything is stopped'
for pid in $(echo "$before" | grep -o '[0-9]*'); do
    if kill -0 "$pid" 2>/dev/null; then
        echo "fresh-clone: process $pid was left behind" >&2
        exit 1
    fi
done
echo "fresh clone: run, run again and stop are as promised"

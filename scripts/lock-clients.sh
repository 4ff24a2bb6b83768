#!/bin/sh
# Resolves the clients of `make clients` again: the newest versions, with hashes, no index or registry named.
set -eu
cd "$(dirname "$0")/../tests/clients/locks"
root=$PWD/../../..
for wanted in *.in; do
    "$root/.venv/bin/uv" pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$wanted" -o "${wanted%.in}.lock"
done
npm install --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts --no-audit --no-fund --loglevel error

#!/bin/sh
# Writes both lock files: versions and hashes for Linux and macOS, no index named.
set -eu
cd "$(dirname "$0")/.."
compile() {
    .venv/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@"
}
compile pyproject.toml -o requirements.lock
compile --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

"""What a start does without: the process answers before it has read everything that some requests need."""

from __future__ import annotations

import subprocess
import sys

LATER = ("prometheus_client", "jsonschema", "watchfiles", "anyio")


def test_a_start_leaves_libraries_to_those_that_need_them():
    code = (
        "import sys, runtime.gateway.__main__, runtime.gateway.assembly, runtime.gateway.server;"
        "early = set(sys.argv[1:]) & set(sys.modules); sys.exit(f'imported: {early}' if early else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *LATER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

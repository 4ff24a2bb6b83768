"""I/O: look after the model store of one node. Standard library only: this file is copied there and run as it is.

`python3 keeper.py VERB` reads one JSON object on one line of stdin and prints JSON objects, one a line, flushed: any
number of `{"event": "progress", "done": bytes, "total": bytes}`, and at the end `{"version": 1, "ok": true, ...}`, or
`{"version": 1, "ok": false, "error": {"code": ..., "message": ...}}` with exit code 1.
Every request names `root`, an absolute directory. Verbs: list, prepare, install, verify, drop, remove.

    <root>/models/<slug>/<entry>/     a whole model with its manifest.json; never changed but for its manifest
    <root>/incoming/<slug>/<entry>/   what has arrived of a model; a file that is there is whole, as pushes are atomic
    <root>/incoming/<slug>/lock       held while a model is put into place or removed

A file's content is read once, by `install`, before the model is moved into place with one rename. What an older
revision of the model has already is linked, not sent again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Json = dict[str, Any]

VERSION = 1
MANIFEST = "manifest.json"
BLOCK_BYTES = 1024 * 1024
EVERY_S = 0.25
STALE_S = 14 * 24 * 3600.0  # what was given up so long ago is not gone on with
RESERVE_BYTES = 64 * 1024 * 1024  # for everybody else who writes to that disk meanwhile
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!@-]{0,250}")


class KeeperError(Exception):
    """A verb cannot be done; `code` is for programs."""

    def __init__(self, code: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.code = code
        self.fields = fields


def say(**fields: Any) -> None:
    """Print one line of the answer."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


class Meter:
    """Reports bytes as they are read, a few times a second."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._latest = 0.0

    def add(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._latest >= EVERY_S or self._done == self._total:
            self._latest = time.monotonic()
            say(event="progress", done=self._done, total=self._total)


def list_models(request: Json) -> Json:
    """Return what is in the store, and which of the asked paths can be used."""
    root = Path(request["root"])
    models = []
    for folder in sorted((root / "models").glob("*/*")):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        files = manifest["files"]
        models.append(
            {
                "slug": folder.parent.name,
                "entry": folder.name,
                "manifest": {key: value for key, value in manifest.items() if key != "files"},
                "content": content(files),
                "ggufs": sorted(name for name in files if name.endswith(".gguf")),
                "size": sum(entry["size"] for entry in files.values()),
                "is_whole": is_whole(folder, files),
            }
        )
    paths = {path: kind_of(Path(path)) for path in request.get("paths", [])}
    return {"models": models, "paths": paths}


def prepare(request: Json) -> Json:
    """Get ready for a model: return the files that have to be sent, or that it is there."""
    target, incoming = places(request)
    files = checked_files(request["manifest"])
    with locked(incoming):
        present = read_manifest(target)
        if present is not None and present["files"] == files and is_whole(target, files):
            if present != request["manifest"]:
                write_manifest(target, request["manifest"])  # a branch means this commit again, or still
            return {"is_present": True, "missing": []}
        clean(incoming)
        incoming.mkdir(parents=True, exist_ok=True)
        for folder in sorted(target.parent.glob("*")):
            link_known(folder, incoming, files)
    missing = [name for name, entry in files.items() if size_of(incoming / name) != entry["size"]]
    need = sum(files[name]["size"] for name in missing)
    free = shutil.disk_usage(incoming).free
    if missing and free < need + RESERVE_BYTES:
        raise KeeperError("disk_full", "no room", path=request["root"], need=need, free=free)
    return {"is_present": False, "missing": missing, "incoming": str(incoming)}


def install(request: Json) -> Json:
    """Check everything that has arrived and move it into place; `damaged` names files that have to be sent again."""
    target, incoming = places(request)
    files = checked_files(request["manifest"])
    with locked(incoming):
        present = read_manifest(target)
        if present is not None and present["files"] == files and is_whole(target, files):
            shutil.rmtree(incoming, ignore_errors=True)
            return {"damaged": []}  # somebody else brought the same model meanwhile
        if not incoming.is_dir():
            raise KeeperError("incomplete", f"{incoming} is gone")
        damaged = differing(incoming, files)
        if damaged:
            for name in damaged:
                with contextlib.suppress(FileNotFoundError):
                    (incoming / name).unlink()
            return {"damaged": damaged}
        for path in [path for path in incoming.rglob("*") if path.is_file()]:
            if path.relative_to(incoming).as_posix() not in files:
                path.unlink()  # of a push that was cut off
        write_manifest(incoming, request["manifest"])
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            old = incoming.with_name(f"old-{os.getpid()}")
            target.rename(old)
        incoming.rename(target)
        sync_folder(target.parent)
        for old in incoming.parent.glob("old-*"):
            shutil.rmtree(old, ignore_errors=True)
    return {"damaged": []}


def verify(request: Json) -> Json:
    """Read every byte of models; return by `slug/entry` the files that differ from the manifest."""
    root = Path(request["root"])
    found: dict[str, list[str]] = {}
    manifests: dict[Path, Json] = {}
    for slug, entry in request["entries"]:
        folder = root / "models" / checked(slug) / checked(entry)
        manifest = read_manifest(folder)
        if manifest is None:
            found[f"{slug}/{entry}"] = [MANIFEST]
        else:
            manifests[folder] = checked_files(manifest)
    meter = Meter(sum(entry["size"] for files in manifests.values() for entry in files.values()))
    for folder, files in manifests.items():
        found[f"{folder.parent.name}/{folder.name}"] = differing(folder, files, meter)
    return {"damaged": found}


def drop(request: Json) -> Json:
    """Remove damaged files of a model, which is not whole from then on: bringing it again sends what is missing."""
    target, incoming = places(request)
    with locked(incoming):
        known = checked_files(read_manifest(target) or {"files": {}})
        for name in request["files"]:
            if name in known:
                with contextlib.suppress(FileNotFoundError):
                    (target / name).unlink()
    return {}


def remove(request: Json) -> Json:
    """Remove a model; one that is not there is no error."""
    target, incoming = places(request)
    with locked(incoming):
        shutil.rmtree(incoming, ignore_errors=True)
        if not target.exists():
            return {"was_there": False}
        old = incoming.with_name(f"old-{os.getpid()}")
        target.rename(old)
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(OSError):  # another revision or form is still there
            target.parent.rmdir()
    return {"was_there": True}


def checked(name: str) -> str:
    """Return a folder's name that leads nowhere else."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise KeeperError("bad_request", f"{name!r} is no name of a folder")
    return name


def places(request: Json) -> tuple[Path, Path]:
    """Return where a model is, and where it arrives."""
    root, slug, entry = Path(request["root"]), checked(request["slug"]), checked(request["entry"])
    return root / "models" / slug / entry, root / "incoming" / slug / entry


def checked_files(manifest: Json) -> dict[str, Json]:
    """Return a manifest's files; none of them leads out of the folder."""
    files: dict[str, Json] = manifest["files"]
    for name in files:
        if not all(map(is_plain, name.split("/"))) or name in {MANIFEST, f".{MANIFEST}"}:
            raise KeeperError("bad_request", f"{name!r} is no file of a model")
    return files


def is_plain(part: str) -> bool:
    """Tell whether one part of a file's path leads nowhere else and is not how a push names what is not whole yet."""
    return part not in {"", ".", ".."} and not part.startswith(".push.") and not {"\0", "\n"} & set(part)


def content(files: Json) -> str:
    """Return one digest for all files; `orchestrator.models.node_store` computes the same."""
    lines = "".join(f"{files[name]['sha256']} {files[name]['size']} {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_manifest(folder: Path) -> Json | None:
    """Return the manifest of a folder that has one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        is_known = all({"size", "sha256"} <= entry.keys() for entry in manifest["files"].values())
        return manifest if is_known and manifest["version"] == 1 else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_manifest(folder: Path, manifest: Json) -> None:
    """Write a manifest so that a reader sees the old or the new one."""
    part = folder / f".{MANIFEST}"
    with part.open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST)


def is_whole(folder: Path, files: Json) -> bool:
    """Tell whether all files are there with their sizes."""
    return all(size_of(folder / name) == entry["size"] for name, entry in files.items())


def size_of(path: Path) -> int | None:
    """Return the size of a plain file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def kind_of(path: Path) -> str | None:
    """Return what a user's path is: a `directory` with a model, a GGUF `file`, or None."""
    if (path / "config.json").is_file():
        return "directory"
    return "file" if path.suffix == ".gguf" and path.is_file() else None


def differing(folder: Path, files: Json, meter: Meter | None = None) -> list[str]:
    """Return the files that are not as described, after making the others durable."""
    meter = meter or Meter(sum(entry["size"] for entry in files.values()))
    found = []
    for name, entry in files.items():
        if size_of(folder / name) != entry["size"]:
            found.append(name)
            meter.add(entry["size"])
            continue
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                meter.add(len(block))
            os.fsync(file.fileno())
        if digest.hexdigest() != entry["sha256"]:
            found.append(name)
    return found


def link_known(folder: Path, incoming: Path, files: Json) -> None:
    """Take over from another revision the files that are the same; `install` reads them like all others."""
    known = read_manifest(folder)
    for name, entry in (known or {"files": {}})["files"].items():
        wanted = [other for other, details in files.items() if details == entry]
        for other in wanted:
            if size_of(incoming / other) == entry["size"] or size_of(folder / name) != entry["size"]:
                continue
            (incoming / other).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # a file system without links; then it is sent
                os.link(folder / name, incoming / other)


def clean(incoming: Path) -> None:
    """Remove what was given up long ago."""
    for other in incoming.parent.iterdir():
        if other != incoming and other.is_dir() and time.time() - other.stat().st_mtime > STALE_S:
            shutil.rmtree(other, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(incoming: Path) -> Iterator[None]:
    """Hold the place of one model."""
    incoming.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(incoming.parent / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


VERBS: dict[str, Callable[[Json], Json]] = {
    "list": list_models,
    "prepare": prepare,
    "install": install,
    "verify": verify,
    "drop": drop,
    "remove": remove,
}


def main(arguments: list[str]) -> int:
    """Do one verb and return the exit code."""
    try:
        answer = VERBS[arguments[0]](json.loads(sys.stdin.readline()))
    except KeeperError as error:
        details = {"code": error.code, "message": str(error), **error.fields}
    except OSError as error:
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        where = error.filename or "the model store"
        details = {"code": "disk_full" if is_full else "failed", "message": f"{where}: {error.strerror}"}
    except (KeyError, ValueError, TypeError, IndexError) as error:
        details = {"code": "bad_request", "message": f"{type(error).__name__}: {error}"}
    else:
        say(version=VERSION, ok=True, **answer)
        return 0
    say(version=VERSION, ok=False, error=details)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

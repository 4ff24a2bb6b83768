"""I/O: manifests say what a folder holds and come back as they were written."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.models.keeper import differing
from orchestrator.models.manifest import Manifest, describe, missing, read_manifest, write_manifest
from orchestrator.models.work import Work

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}(/[a-z][a-z0-9_-]{0,8})?", fullmatch=True)
FOLDERS = st.dictionaries(NAMES, st.binary(max_size=64), max_size=5).filter(
    lambda files: not any(other.startswith(f"{name}/") for name in files for other in files)
)


@settings(max_examples=40, deadline=None)
@given(files=FOLDERS, text=st.text(max_size=20), time=st.floats(allow_nan=False, allow_infinity=False))
def test_manifest_comes_back_and_finds_what_changed(files: dict[str, bytes], text: str, time: float) -> None:
    work = Work(lambda _: None, threading.Event())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        manifest = Manifest(
            source=text,
            requested=text or None,
            revision=text,
            digest=None,
            converter=None,
            installed_at=time,
            files=describe(folder, work),
        )

        write_manifest(folder, manifest)

        assert read_manifest(folder) == manifest
        assert set(manifest.files) == set(files)
        files_described = manifest.model_dump()["files"]
        assert (missing(folder, manifest), differing(folder, files_described)) == ((), [])
        for name, data in files.items():
            (folder / name).write_bytes(bytes(byte ^ 1 for byte in data) or b"!")
        assert set(differing(folder, files_described)) == set(files)

"""I/O: the shell script that puts a file on a node, run here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.transport.ssh_words import push_argv


@pytest.mark.parametrize("is_durable", [True, False])
def test_only_a_small_file_waits_for_the_disk(tmp_path: Path, *, is_durable: bool) -> None:
    """A disk may need longer for a large one than a transfer may stand still."""
    programs, synced, target = tmp_path / "bin", tmp_path / "synced", tmp_path / "there" / "file"
    programs.mkdir()
    (programs / "sync").write_text(f"#!/bin/sh\n: > '{synced}'\n")
    (programs / "sync").chmod(0o755)

    subprocess.run(
        push_argv(str(target), 0o640, 5, is_durable=is_durable),
        input=b"hello",
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
        check=True,
    )

    assert target.read_bytes() == b"hello"
    assert target.stat().st_mode & 0o777 == 0o640
    assert synced.exists() is is_durable
    assert [each.name for each in target.parent.iterdir()] == ["file"]

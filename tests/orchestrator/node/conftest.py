"""I/O: a fresh node for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.node.harness import Shim


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    node = Shim(tmp_path / "state")
    yield node
    node.clean_up()

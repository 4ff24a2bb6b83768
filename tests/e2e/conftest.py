"""Stacks that really run: the program, the worker, the model, the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.trial import Trial


def trial_in(root: Path, cache: Path, stack: str = "quickstart") -> Trial:
    """Return a stack below `root` that is not running yet, whose store holds the quickstart model."""
    state = root / "state"
    state.mkdir(parents=True)
    (state / "cache").symlink_to(cache, target_is_directory=True)
    return Trial(root, state, stack)


@pytest.fixture
def trial(tmp_path: Path, quickstart_cache: Path) -> Iterator[Trial]:
    """Return a stack that is not running yet."""
    trial = trial_in(tmp_path / "trial", quickstart_cache)
    yield trial
    trial.close()


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, quickstart_cache: Path) -> Iterator[Trial]:
    """Return a group of three ranks that is up, shared by the tests of a module; each leaves it up and healthy."""
    trial = trial_in(tmp_path_factory.mktemp("trio") / "trial", quickstart_cache, "trio")
    try:
        trial.run("up", "trio", "--yes")
        yield trial
    finally:
        trial.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, quickstart_cache: Path) -> Iterator[Trial]:
    """Return a stack that is up, shared by the tests of a module; each leaves it up and healthy."""
    trial = trial_in(tmp_path_factory.mktemp("running") / "trial", quickstart_cache)
    try:
        trial.run("up", "quickstart", "--yes")
        yield trial
    finally:
        trial.close()

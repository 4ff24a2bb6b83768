"""Stacks that really run: the program, the worker, the model, the gateway.

What is shown does not depend on the model in most tests: they serve a tiny one, which loads and answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.trial import Trial


def trial_in(root: Path, cache: Path | None, stack: str = "quickstart", model: Path | None = None) -> Trial:
    """Return a stack below `root` that is not running yet.

    `cache` is a store that holds the quickstart model, `model` an MLX directory to serve in its place.
    """
    state = root / "state"
    state.mkdir(parents=True)
    if cache is not None:
        (state / "cache").symlink_to(cache, target_is_directory=True)
    return Trial(root, state, stack, model)


def up_in(root: Path, cache: Path | None, stack: str = "quickstart", model: Path | None = None) -> Iterator[Trial]:
    """Yield a stack that is up, and take it down."""
    trial = trial_in(root, cache, stack, model)
    try:
        trial.run("up", stack, "--yes")
        yield trial
    finally:
        trial.close()


@pytest.fixture
def trial(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Trial]:
    """Return a stack that is not running yet."""
    trial = trial_in(tmp_path / "trial", None, model=tiny_model_dir)
    yield trial
    trial.close()


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Trial]:
    """Return a group of three ranks that is up, shared by the tests of a module; each leaves it up and healthy."""
    yield from up_in(tmp_path_factory.mktemp("trio") / "trial", None, "trio", tiny_model_dir)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Trial]:
    """Return a stack that is up, shared by the tests of a module; each leaves it up and healthy."""
    yield from up_in(tmp_path_factory.mktemp("running") / "trial", None, model=tiny_model_dir)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, quickstart_cache: Path) -> Iterator[Trial]:
    """Return the shipped stack with the shipped model, up, shared by the tests of a module."""
    yield from up_in(tmp_path_factory.mktemp("real") / "trial", quickstart_cache)

"""A group that answers otherwise than one process does is not routed to, and what it was to replace stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import trial_in
from tests.e2e.trial import Trial, poll
from tests.runtime.worker.damage import damage
from tests.runtime.worker.tiny import write_model

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", intermediate=3072)


@pytest.fixture
def group(tmp_path: Path, model: Path) -> Iterator[Trial]:
    """Return a group of three ranks that has passed its canary."""
    trial = trial_in(tmp_path / "trial", None, "trio", model)
    try:
        said = trial.run("up", "trio", "--yes").stdout
        assert "1 reference to compute" in said
        assert "canary (prompt of 128 tokens)" in said
        yield trial
    finally:
        trial.close()


def test_a_damaged_copy_is_refused_and_the_old_group_stays_until_nobody_asks_for_a_canary(
    group: Trial, model: Path
) -> None:
    # A worker that was too busy to answer in time tells nothing of itself.
    poll(lambda: "canary passed, 5 prompts of up to 128 tokens" in group.run("status", "trio").stdout)
    before, answer = group.pids(), group.chat().json()["choices"]
    damage(model)
    group.edit("    sharding:", "    max_batch: 4\n    update: surge\n    sharding:")
    done = group.run("apply", "trio", "--yes", code=4)
    assert "answer 3" not in done.stdout  # what one process had answered was kept
    assert "does not answer as one process does" in done.stderr
    assert "| prompt 'capital'" in done.stderr
    assert "expected" in done.stderr
    assert group.pids() == before
    assert group.chat().json()["choices"] == answer
    shown = group.run("status", "trio").stdout
    assert "answered otherwise than one process does" in shown
    assert "canary failed: prompt 'capital'" not in shown.split("chat-0 ")[0]
    assert "prompt 'capital'" in shown
    assert "does not answer as one process does" in str(group.json("history", "trio"))
    group.edit("canary: {long_tokens: 128}", "canary: off")
    group.run("apply", "trio", "--yes")
    unit = poll(lambda: (seen := group.units()["chat-0.0"])["ready"] and seen)
    assert unit["canary"]["outcome"] == "off"
    assert "No changes" in group.run("plan", "trio").stdout

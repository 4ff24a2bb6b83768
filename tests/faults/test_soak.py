"""A short soak with a fixed seed; `python -m tests.faults.soak` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.upstream import DONE, FINISH
from tests.faults.soak import SoakError, event, judge_stream, said, soak

WORDS = b"".join(said("a", index) for index in range(20))
ERROR = event({"error": {"message": "it broke off", "type": "upstream_error", "code": None}})


@pytest.mark.slow
async def test_nothing_is_lost_and_nothing_is_left_whatever_goes_wrong(tmp_path: Path) -> None:
    counts = await soak(tmp_path, seconds=20, seed=7)

    assert counts["streamed"] and counts["answered"] and counts["edits"]


@pytest.mark.parametrize(
    "raw",
    [
        WORDS + FINISH,
        WORDS + FINISH + ERROR + DONE,
        said("a", 0) + FINISH + DONE,
        said("a", 0) + said("b", 1) + ERROR,
        said("a", 0) + said("a", 0) + ERROR,
        said("a", 1) + ERROR,
        b"",
    ],
)
def test_a_soak_notices_what_it_looks_for(raw: bytes) -> None:
    with pytest.raises(SoakError):
        judge_stream(raw)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (WORDS + FINISH + DONE, "streamed"),
        (said("a", 0) + ERROR, "error in the stream"),
        (said("b", 0) + b": restart\n" + WORDS + FINISH + DONE, "streamed"),
    ],
)
def test_a_soak_lets_pass_what_is_whole_or_honest(raw: bytes, found: str) -> None:
    assert judge_stream(raw) == found

"""When an idle group measures its links, and what it tells of them."""

from concurrent.futures import Future
from pathlib import Path

import pytest

from runtime.worker.group import pace
from runtime.worker.group.lead_rounds import Pending, Rounds
from runtime.worker.group.link_schedule import (
    ALLOWANCE_S,
    BANDWIDTH_EVERY_S,
    LATENCY_EVERY_S,
    QUIET_S,
    LinkSchedule,
    Measure,
    sizes,
)
from runtime.worker.group.wire import RIGHT
from runtime.worker.steps import GroupEndedError
from tests.runtime.worker.group import Group
from tests.runtime.worker.process import wait_until


def measured(schedule: LinkSchedule, until: float) -> list[tuple[float, Measure]]:
    """Return what an idle thread measures, and when."""
    now, found = 0.0, []
    while now < until:
        if measure := schedule.due(now):
            found.append((now, measure))
        now += max(0.001, schedule.wait_s(now))
    return found


def test_an_idle_group_measures_latency_every_ten_seconds_and_bandwidth_every_minute() -> None:
    found = measured(LinkSchedule(), 10 * BANDWIDTH_EVERY_S)
    counts = {kind: sum(measure == kind for _, measure in found) for kind in ("latency", "bandwidth")}
    assert counts["latency"] == pytest.approx(10 * BANDWIDTH_EVERY_S / LATENCY_EVERY_S, abs=2)
    assert counts["bandwidth"] == pytest.approx(10, abs=1)


def test_nothing_is_measured_right_behind_a_request() -> None:
    schedule = LinkSchedule()
    schedule.worked(100.0)
    assert schedule.due(100.0 + QUIET_S / 2) is None
    assert schedule.wait_s(100.0) == QUIET_S
    assert schedule.due(100.0 + QUIET_S) == "latency"


def test_what_is_measured_has_the_sizes_that_the_figures_are_named_after() -> None:
    assert (sizes("latency")[0] + 1) * 4 == 4 << 10
    assert (sizes("bandwidth")[0] + 1) * 4 == 4 << 20


def test_a_request_behind_a_measurement_on_a_ring_that_was_cut_is_told_as_soon_as_in_any_round() -> None:
    assert ALLOWANCE_S <= pace.FLOOR_S


def pending(number: int, measure: Measure | None = None) -> Pending:
    return Pending(number, 0.0, 15.0, Future(), measure)


def test_a_round_is_over_when_every_rank_has_computed_the_same() -> None:
    rounds = Rounds(2)
    rounds.begin(under_way := pending(1))
    assert rounds.take(0, 1, "ab", None) is None
    assert not under_way.verdict.done()
    assert rounds.take(1, 1, "ab", None) is None
    assert under_way.verdict.result() is None
    assert rounds.done == 1


@pytest.mark.parametrize(
    ("measure", "digests", "words"),
    [(None, ("ab", "cd"), "different tokens"), ("latency", (RIGHT, "wrong"), "wrong sum"),
     ("latency", ("wrong", "wrong"), "wrong sum")],
)  # fmt: skip
def test_ranks_that_computed_something_else_are_found(
    measure: Measure | None, digests: tuple[str, str], words: str
) -> None:
    rounds = Rounds(2)
    rounds.begin(pending(1, measure))
    assert rounds.take(0, 1, digests[0], None) is None
    fault = rounds.take(1, 1, digests[1], None)
    assert fault is not None
    assert words in fault


def test_a_round_that_is_not_under_way_and_one_that_does_not_end_are_named() -> None:
    rounds = Rounds(2)
    assert "not under way" in str(rounds.take(1, 4, "ab", None))
    rounds.begin(under_way := pending(1))
    rounds.take(0, 1, "ab", None)
    assert rounds.stalled(10.0) is None
    assert "for 15 s in rank 1" in str(rounds.stalled(16.0))
    rounds.give_up("rank 1 was lost")
    with pytest.raises(GroupEndedError, match="rank 1"):
        under_way.verdict.result()


def test_the_last_measurements_of_every_rank_are_kept() -> None:
    rounds = Rounds(2)
    assert rounds.link(0) is None
    for number, measure, seconds in ((1, "latency", 0.001), (2, "bandwidth", 0.1)):
        rounds.begin(pending(number, measure))
        for rank in range(2):
            rounds.take(rank, number, RIGHT, seconds * (rank + 1))
    link = rounds.link(1)
    assert link is not None
    assert link.latency_us == pytest.approx(2000)
    assert link.bandwidth_gbps == pytest.approx((4 << 20) * 8 / 0.2 / 1e9, abs=0.001)


@pytest.mark.slow
def test_an_idle_group_tells_its_links_and_goes_on_answering(tiny_model_dir: Path, tmp_path: Path) -> None:
    with Group(tiny_model_dir, tmp_path / "group", 2) as group:
        group.wait_ready()
        before = group.lead.text_of(prompt="the quick", max_tokens=8, temperature=0)

        def look() -> bool:
            ranks = group.lead.status()["group"]["ranks"]
            return all(rank["link"] and rank["link"]["bandwidth_gbps"] for rank in ranks)

        wait_until(look, "every rank has measured its links")
        assert group.lead.text_of(prompt="the quick", max_tokens=8, temperature=0) == before
        ranks = group.lead.status()["group"]["ranks"]
        assert all(rank["memory"]["model_bytes"] > 0 for rank in ranks)
        wait_until(lambda: group.lead.status()["group"]["ranks"][1]["round"] > 0, "rank 1 tells its round")

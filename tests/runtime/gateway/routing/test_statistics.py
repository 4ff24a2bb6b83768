"""What is counted of one endpoint."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.routing.statistics import REMEMBERED, REMEMBERED_CHANGES, Statistics, percentiles


def test_nothing_is_said_of_what_never_happened() -> None:
    stats = Statistics()
    assert (stats.whole_s(), stats.first_content_s(), stats.tokens_per_s()) == (None, None, None)


def test_answers_give_latencies_and_tokens_a_second() -> None:
    stats = Statistics()
    stats.answer(100.0, 101.0, 105.0, 80)  # 80 tokens in the 4 s behind the first content
    stats.answer(200.0, None, 210.0, 20)  # 20 tokens in 10 s
    stats.answer(300.0, 300.5, 301.0, 0)  # says nothing of its tokens
    stats.answer(400.0, 400.0, 400.0, 7)  # no time to divide by
    assert stats.answers == 4
    assert stats.whole_s() == (1.0, 10.0)
    assert stats.first_content_s() == (0.5, 1.0)
    assert stats.tokens_per_s() == 100 / 14


def test_old_answers_are_forgotten() -> None:
    stats = Statistics()
    for second in range(REMEMBERED):
        stats.answer(0.0, 0.0, 1000.0 + second, 1)
    for _ in range(REMEMBERED):
        stats.answer(0.0, 1.0, 2.0, 3)
    assert stats.whole_s() == (2.0, 2.0)
    assert stats.tokens_per_s() == 3.0
    for number in range(100):
        stats.change(float(number), "open" if number % 2 else "closed", "why")
    assert len(stats.changes) == REMEMBERED_CHANGES
    assert stats.changes[-1] == (99.0, "open", "why")
    assert stats.changed == {"open": 50, "closed": 50}


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_percentiles_are_values_with_as_many_below_them(values: list[float]) -> None:
    found = percentiles(values)
    assert found is not None
    for value, share in zip(found, (0.5, 0.95), strict=True):
        assert value in values
        assert sum(each <= value for each in values) >= share * len(values)
        assert sum(each < value for each in values) < math.ceil(share * len(values))

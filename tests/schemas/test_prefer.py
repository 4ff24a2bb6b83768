"""The header by which a client waits for a load."""

import pytest

from schemas.prefer import LONGEST_WAIT_S, wait_preference, wait_s


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=30", 30),
        ("Wait = 30", 30),
        ('wait="30"', 30),
        ("respond-async, wait=100", 100),
        ("wait=5; foo=bar, return=minimal", 5),
        ("wait=1, wait=9", 1),
        ("await=9", 0),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait=soon", 0),
        ("wait=999999999", LONGEST_WAIT_S),
        ("wait=99999999999999", 0),
    ],
)
def test_what_a_client_waits(header: str | None, seconds: float) -> None:
    assert wait_s(header) == seconds


def test_what_is_written_is_read_again() -> None:
    assert wait_s(wait_preference(12.9)) == 12

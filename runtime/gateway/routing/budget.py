"""Pure: how many attempts of one name that clients ask for may be second or later ones."""

from __future__ import annotations

RETRY_SHARE = 0.2
"""Share of the requests under way that may be such attempts."""
LEAST_RETRIES = 3
"""How many are allowed however few requests are under way."""


class Budget:
    """The attempts under way of one name: troubles of one role take nothing from the retries of another."""

    __slots__ = ("active", "retrying")

    def __init__(self) -> None:
        self.active = 0
        self.retrying = 0

    def may_retry(self) -> bool:
        """Tell whether there is room: retries must not multiply the load of a failing cluster."""
        return self.retrying < max(LEAST_RETRIES, RETRY_SHARE * self.active)

    def begin(self, *, is_retry: bool) -> None:
        """Count an attempt."""
        self.active += 1
        self.retrying += is_retry

    def end(self, *, is_retry: bool) -> None:
        """Take an attempt off again."""
        self.active -= 1
        self.retrying -= is_retry

"""I/O: measures the links of a loaded group, on the generation thread of every rank at once."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream

from runtime.worker.link import Links


@dataclass(frozen=True, slots=True)
class Measured:
    """What one rank has seen."""

    seconds: float
    """The median of the sums."""
    is_right: bool
    """Every sum was the sum of what the ranks had sent."""


class LinkProbe:
    """The collectives of a group that has a model beside them."""

    def __init__(self, joined: Any) -> None:
        self._links = Links(joined)

    def measure(self, numbers: int, sums: int) -> Measured:
        """Add up `numbers` numbers of every rank, `sums` times; raises what mlx raises for a connection that is lost.

        The first sum waits for the slowest rank to hear of the measurement, and is not counted. All of them are in the
        stream of the model's own collectives, so that they have the same place among these on every rank.
        """
        wrong = self._links.wrong
        with mx.stream(generation_stream):
            self._links.round(numbers)
            took = sorted(self._links.round(numbers)[0] for _ in range(sums))
        mx.clear_cache()
        return Measured(took[len(took) // 2], self._links.wrong == wrong)

"""Pure: what does not work, with reasons: as the model of the tests is small, or as a client or backend is.

Kept apart from what the API must do. An entry is a client, a feature of its program, and the backends that it is for;
it is strict: a feature that works after all fails the run until its entry is taken out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """Something that does not work, and why."""

    client: str
    feature: str
    reason: str
    backends: Collection[str] = ("our worker", "llama.cpp", "mlx_lm.server")


KNOWN: tuple[Known, ...] = ()


def reason_of(client: str, feature: str, backend: str) -> str | None:
    """Return why a feature is known not to work; None where it must."""
    found = (
        each.reason for each in KNOWN if (each.client, each.feature) == (client, feature) and backend in each.backends
    )
    return next(found, None)

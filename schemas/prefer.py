"""Pure: the header `Prefer: wait=SECONDS`, by which a client says that it would rather wait than ask again."""

from __future__ import annotations

import re

LONGEST_WAIT_S = 600.0
"""Nobody is kept waiting longer, whatever the header says."""
HEADER = "prefer"
PROBE_HEADER = "x-orchestrate-probe"
"""Marks a request that only looks whether an endpoint answers: it loads no model and counts as no use of one."""

# RFC 7240, sections 2 and 4.3: preferences are separated by commas, the first of several `wait` counts.
_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)


def wait_s(header: str | None) -> float:
    """Return how many seconds a client waits for an answer to begin; 0 where it does not say."""
    found = _WAIT.search(header or "")
    return min(float(found[1]), LONGEST_WAIT_S) if found else 0.0


def wait_preference(seconds: float) -> str:
    """Return the header's value for a number of seconds, rounded down."""
    return f"wait={int(seconds)}"

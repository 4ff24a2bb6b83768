"""I/O: work that makes many objects and no cycles, without the collector of cycles looking at them again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from looking for reference cycles while the context lasts; what nobody refers to is freed as ever.

    A plan is hundreds of thousands of small objects that live until it is printed, and every pass of the collector
    visits them all and finds nothing: a quarter to a third of the time that planning for 1,000 nodes took. The
    collector belongs to the process: of overlapping contexts the first that ends turns it on again, which costs the
    others time and nothing else.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""The collector of cycles is off while a context lasts, and never afterwards."""

from __future__ import annotations

import gc
from contextlib import ExitStack

from orchestrator.uncollected import uncollected


def test_overlapping_contexts_leave_the_collector_as_it_was():
    assert gc.isenabled()
    first, second = ExitStack(), ExitStack()
    first.enter_context(uncollected())
    second.enter_context(uncollected())
    first.close()
    assert not gc.isenabled()
    second.close()
    assert gc.isenabled()

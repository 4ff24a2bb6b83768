"""I/O: one attempt in several requests, each of which needs the answer to the one before.

They share the place that was leased and the deadline, and what ends one of them ends the attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from runtime.gateway.attempt import Ask, AttemptError, Result, Steps
from runtime.gateway.routing.outcome import SUCCESS


async def in_steps(send: Callable[[Ask], Awaitable[Result]], steps: Steps) -> Result:
    """Send one request after the other; raises `AttemptError` where the steps cannot go on without what failed."""
    try:
        ask = next(steps)
        while True:
            try:
                result = await send(ask)
            except AttemptError as error:
                ask = steps.throw(error)
                continue
            if result.verdict is not SUCCESS:
                return result
            ask = steps.send(result)
    except StopIteration as end:
        ended: Result = end.value
        return ended
    finally:
        steps.close()

"""I/O: one attempt in several requests, for endpoints that do not take all of a request at once.

The parts share the place that was leased, the deadline and the verdict: one that fails ends all of them, and the whole
request goes on to another endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from runtime.gateway.attempt import (
    ODD_ANSWER,
    Ask,
    AttemptError,
    BadAnswerError,
    Course,
    Parts,
    Result,
    WrongDimensionError,
)
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import SUCCESS, WRONG_DIMENSION, judge_fault

AT_ONCE = 4
"""Parts of one request at one endpoint at a time: enough that it does not wait for us, too few to shut others out."""
LARGEST_JOINED_HERE = 256 * 1024
"""Bytes of answers that are put together on the event loop; more would keep all others waiting."""

Send = Callable[[Ask, Course], Awaitable[Result]]


async def in_parts(
    send: Send, parts: Parts, lease: Lease, course: Course, now: float, *, is_at_once: bool = True
) -> Result:
    """Send the parts of a request and make one answer of theirs; raises `AttemptError`.

    `send` sends one of them within the deadline of a course. `now` is the event loop's clock. Without `is_at_once`, as
    for texts, which take their time, only the request's own deadline is that of all of them.
    """
    lease.sends(sum(len(ask.body.raw) for ask in parts.asks))
    left_s = course.deadline - now
    shared = Course(now, min(left_s, lease.first_limit_s) if is_at_once else left_s)
    # Who limits the requests at once at an endpoint gets one at a time of each client.
    places = asyncio.Semaphore(AT_ONCE if lease.target.max_in_flight is None else 1)
    ended: list[Result | AttemptError] = []

    async def one(ask: Ask) -> Result:
        async with places:
            try:
                result = await send(ask, shared)
            except AttemptError as error:
                ended.append(error)
                raise _EndedError from None
        if result.verdict is not SUCCESS:
            ended.append(result)
            raise _EndedError
        return result

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(ask)) for ask in parts.asks]
    except* _EndedError:
        pass
    for first in ended[:1]:
        if isinstance(first, AttemptError):
            raise first
        return first
    return await _joined(parts, [task.result() for task in tasks])


async def _joined(parts: Parts, results: Sequence[Result]) -> Result:
    answers = [result.body or b"" for result in results]
    try:
        if sum(map(len, answers)) > LARGEST_JOINED_HERE:
            body = await asyncio.to_thread(parts.join, answers)
        else:
            body = parts.join(answers)
    except WrongDimensionError as error:
        raise AttemptError(WRONG_DIMENSION, str(error)) from error
    except BadAnswerError as error:
        raise AttemptError(judge_fault("bad answer", is_committed=False), str(error)) from error
    except ODD_ANSWER as error:
        raise AttemptError(judge_fault("bad answer", is_committed=False), type(error).__name__) from error
    return Result(SUCCESS, body=body, tokens=sum(result.tokens for result in results))


class _EndedError(Exception):
    """A part has failed, or was answered with what the client is to have in place of all of them."""

"""I/O: one attempt whose answer the gateway puts together: of several, or of one that must have a form.

All requests of it share the place that was leased, the deadline and the verdict; when the client leaves, all of them
end. Nothing is sent to the client before the answer is complete, so that another endpoint can take over; a client that
waits for a stream gets its comments, and then all events at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from runtime.gateway import sse
from runtime.gateway.adapters.emulation.choices import added, streamed
from runtime.gateway.adapters.emulation.forms import BadSchemaError, Unfit
from runtime.gateway.adapters.emulation.gathering import Gathering
from runtime.gateway.adapters.emulation.one_call import FirstCall
from runtime.gateway.attempt import (
    ODD_ANSWER,
    Ask,
    AttemptError,
    BadAnswerError,
    Client,
    Course,
    Parts,
    Result,
    keep_alive,
)
from runtime.gateway.errors import ApiError, error_body, error_event
from runtime.gateway.observe.metrics import Metrics
from runtime.gateway.parts import Send, in_parts
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import CLIENT_ERROR, OUT_OF_TIME, SUCCESS, UNFIT, judge_fault
from runtime.gateway.upstream import UpstreamError

UNFIT_STATUS = 422
"""Of an answer that has not the wanted form after the second try. It is not one that SDKs ask again after: the same
model would answer the same."""
LARGEST_WRITTEN_HERE = 256 * 1024
"""Bytes of a request whose copies are written on the event loop; longer ones would keep all others waiting."""
CHECKED_S = 30.0
"""How long it may take until a schema or an answer is checked, which takes a second or two where nobody is in line."""

_checkers = ThreadPoolExecutor(2, thread_name_prefix="schema")
"""Threads of their own: what clients' schemas take must not keep others from theirs."""
_T = TypeVar("_T")


async def emulated(
    send: Send,
    gathering: Gathering,
    ask: Ask,
    lease: Lease,
    course: Course,
    client: Client,
    metrics: Metrics,
    now: float,
) -> Result:
    """Answer a client with what `send` brings together; raises `AttemptError` and `ClientLeftError`.

    `now` is the event loop's clock.
    """
    if gathering.form is not None:
        try:
            await _checked(gathering.form.check)
        except BadSchemaError as error:
            return _refused(gathering, error)
    work = asyncio.create_task(_gathered(send, gathering, ask, lease, course, now))
    try:
        result = await _awaited(work, ask, lease, course, client)
    finally:
        # Its places at the endpoint are free before anybody goes on.
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    if not ask.body.is_stream or result.verdict is not SUCCESS:
        return result
    try:
        events = streamed(result.body or b"", with_usage=ask.wants_usage)
    except (BadAnswerError, *ODD_ANSWER) as error:
        raise _bad(error) from error
    course.first_at = asyncio.get_running_loop().time()
    metrics.first_content(ask.route.name, course.first_at - course.started_at)
    return await _sent(result, lease, course, client, events)


class OneCallClient:
    """The client's side of a stream that gets one call at most."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._first = FirstCall()

    @property
    def is_started(self) -> bool:
        return self._client.is_started

    async def start(self, endpoint: str, attempts: int, fallback: str) -> None:
        await self._client.start(endpoint, attempts, fallback)

    async def send(self, data: bytes) -> None:
        await self._client.send(self._first.feed(data))


async def _awaited(work: asyncio.Task[Result], ask: Ask, lease: Lease, course: Course, client: Client) -> Result:
    loop = asyncio.get_running_loop()
    while ask.body.is_stream and not work.done():
        await asyncio.wait((work,), timeout=max(0.0, course.wake_at - loop.time()))
        if not work.done() and loop.time() >= course.wake_at:
            await keep_alive(lease.target.name, course, client)
    return await work


async def _gathered(send: Send, gathering: Gathering, ask: Ask, lease: Lease, course: Course, now: float) -> Result:
    places = {id(plain): place for place, plain in enumerate(gathering.plain)}
    answered: set[int] = set()

    async def one(part: Ask, shared: Course) -> Result:
        place = places[id(part)]
        try:
            return await _fit(send, gathering, place, ask, shared, answered)
        except AttemptError as error:
            if answered and error.verdict.effect == "failure" and asyncio.get_running_loop().time() >= shared.deadline:
                # It has answered, only not as often as it was asked to.
                raise AttemptError(OUT_OF_TIME, error.error, error.status, error.body) from error
            raise

    return await in_parts(one, Parts(gathering.plain, gathering.joined), lease, course, now, is_at_once=False)


async def _fit(send: Send, gathering: Gathering, place: int, ask: Ask, shared: Course, answered: set[int]) -> Result:
    """Ask for one answer, and once more where it has not the form that it must have and there is time.

    `answered` are the places whose endpoint has answered, in whatever form.
    """
    is_optional = gathering.form is not None and gathering.form.is_optional
    try:
        first = await send(await _written(ask, lambda: gathering.written(place)), shared)
        if first.verdict is not SUCCESS or first.body is None:
            return first
        answered.add(place)
        found = await _read(gathering, place, first.body)
        if isinstance(found, bytes):
            return first._replace(body=found)
        is_late = asyncio.get_running_loop().time() >= shared.deadline
        if found.is_cut or is_late:
            if is_optional:
                return first
            why = "it was cut off by the limit of tokens" if found.is_cut else "there was no time to ask again"
            raise _unfit(gathering, found, f"once: {why}")
        unfit = found
        second = await send(await _written(ask, lambda: gathering.again(place, unfit)), shared)
        if second.verdict is not SUCCESS or second.body is None:
            return second
        found = await _read(gathering, place, second.body)
        if isinstance(found, Unfit):
            if is_optional:
                return second
            raise _unfit(gathering, found, "in two tries")
        return second._replace(body=added(found, first.body), tokens=first.tokens + second.tokens)
    except BadSchemaError as error:
        return _refused(gathering, error)
    except ApiError as error:
        return Result(CLIENT_ERROR, error.status, error.body())
    except BadAnswerError as error:
        raise _bad(error) from error


async def _written(ask: Ask, write: Callable[[], Ask]) -> Ask:
    """Return one of the requests in place of another, its bytes written."""
    is_large = len(ask.body.raw) > LARGEST_WRITTEN_HERE
    written = await asyncio.to_thread(write) if is_large else write()
    return replace(written, wait_s=ask.wait_s)


def _bad(error: Exception) -> AttemptError:
    text = str(error) if isinstance(error, BadAnswerError) else type(error).__name__
    return AttemptError(judge_fault("bad answer", is_committed=False), text)


async def _checked(check: Callable[[], _T]) -> _T:
    """Hold something to a client's schema beside the event loop."""
    try:
        async with asyncio.timeout(CHECKED_S):
            return await asyncio.get_running_loop().run_in_executor(_checkers, check)
    except TimeoutError as error:
        raise AttemptError(OUT_OF_TIME, "schemas took too long to be checked") from error


async def _read(gathering: Gathering, place: int, raw: bytes) -> bytes | Unfit:
    try:
        if gathering.form is None:
            return gathering.read(place, raw)
        return await _checked(lambda: gathering.read(place, raw))
    except ODD_ANSWER as error:
        raise _bad(error) from error


def _unfit(gathering: Gathering, found: Unfit, when: str) -> AttemptError:
    param = gathering.form.param if gathering.form is not None else ""
    message = f"The model did not answer in the form that '{param}' asks for, {when} ({'; '.join(found.faults)})."
    body = error_body(UNFIT_STATUS, message, code="answer_not_in_form", param=param)
    return AttemptError(UNFIT, f"no answer in the form of {param}", UNFIT_STATUS, body)


def _refused(gathering: Gathering, error: BadSchemaError) -> Result:
    param = gathering.form.param if gathering.form is not None else ""
    if param == "response_format":
        param = "response_format.json_schema.schema"
    return Result(CLIENT_ERROR, 400, error_body(400, f"'{param}' {error}.", code="invalid_value", param=param))


async def _sent(result: Result, lease: Lease, course: Course, client: Client, events: bytes) -> Result:
    """Send an answer that is there as a whole to a client that waits for a stream."""
    if not client.is_started:
        await client.start(lease.target.name, course.attempts, course.fallback)
    if course.is_broken_off:
        course.is_broken_off = False
        await client.send(sse.restart_event(lease.target.name, course.attempts))
    try:
        await client.send(events)
    except UpstreamError as error:
        message = f"The endpoint '{lease.target.name}' gave an answer that cannot be read."
        await client.send(error_event(message, "upstream_error"))
        return Result(judge_fault(error.fault, is_committed=True), error=str(error))
    return Result(SUCCESS, tokens=result.tokens)

"""Pure: what an attempt is given, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from runtime.gateway.bodies import Body
from runtime.gateway.routing.outcome import Verdict
from runtime.gateway.routing.select import Skipped
from runtime.gateway.routing.table import EndpointIdentity, Route, Target
from runtime.gateway.usage import wants_usage

if TYPE_CHECKING:
    from runtime.gateway.adapters.emulation.gathering import Gathering
    from runtime.gateway.continuing import Continuing

HOLD_S = 10.0
"""How long a stream's headers are held back for the sake of failover."""
COMMENT_S = 15.0
"""Time between the comments that keep a waiting stream alive."""

_COMMENT = b": keep-alive\n\n"
_OK = 200


class ClientLeftError(Exception):
    """The client closed its connection, or does not read any more."""


class Client(Protocol):
    """The client's side of a stream."""

    @property
    def is_started(self) -> bool:
        """Whether status and headers were sent."""
        ...

    async def start(self, endpoint: str, attempts: int, fallback: str, /) -> None:
        """Send status 200 and the headers of an event stream; raises `ClientLeftError`."""
        ...

    async def send(self, data: bytes, /) -> None:
        """Send bytes of the stream, waiting while the client reads slowly; raises `ClientLeftError`."""
        ...


NO_HEADERS: Mapping[bytes, bytes] = MappingProxyType({})


class BadAnswerError(Exception):
    """An endpoint's answer is not what was asked for; says in which way."""


class WrongDimensionError(BadAnswerError):
    """An endpoint's vectors have another length than is wanted. It may be right for others who ask it."""


ODD_ANSWER = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What reading an answer may raise that nobody has foreseen; it is an answer like any other that is bad."""


class Reading(Protocol):
    """What the answer to a request has to be that is passed on as a whole."""

    def read(self, raw: bytes, headers: Mapping[bytes, bytes] = ..., /) -> bytes:
        """Return the answer for the client; raises `BadAnswerError`. `headers` are by lower-case name."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a client."""

    route: Route
    path: str
    """Path at the endpoint, behind its base path."""
    body: Body
    request_id: str
    client_path: str = ""
    """Where the client has asked; empty where the gateway itself does."""
    is_probe: bool = False
    """Whether the gateway itself asks, to see whether the endpoint answers."""
    wait_s: float = 0.0
    """How long the client waits for a model that has to be brought into memory."""
    reading: Reading | None = None
    """What the answer has to be, where that can be told."""
    skipped: Callable[[], bytes] | None = None
    """Makes the answer of a role that may leave the task undone."""
    failing: frozenset[str] = frozenset()
    """Endpoints that are to fail for this request, by name: a rehearsal that an administrator has asked for."""
    parts: Parts | None = None
    """The requests that the endpoint gets in place of this one, where this is more than it takes at once."""
    may_restart: bool = True
    """Whether its client can be told that an answer begins anew: only OpenAI's streams have an event for it."""
    is_rest: bool = False
    """Whether it asks for the rest of an answer whose beginning its client has got from another endpoint."""
    steps: Callable[[Target], Steps] | None = None
    """Makes the requests that an endpoint gets one after the other in place of this one."""
    gathering: Gathering | None = None
    """How the gateway puts an answer together that the endpoint cannot give by itself."""
    is_one_call: bool = False
    """Whether calls behind the first one are cut out of its stream."""
    emulated: tuple[str, ...] = ()
    """The parameters that the gateway sees to in the endpoint's place."""
    dropped: tuple[str, ...] = ()
    """The parameters that were left out, because the files say so for this endpoint."""
    notes: Notes | None = None
    """Where it is noted what the client is told beside the answer."""
    is_usage_kept: bool = False
    """Whether the client wants the usage of a stream although the endpoint is not asked for it."""

    @property
    def wants_usage(self) -> bool:
        """Whether the client wants the usage of a stream."""
        return self.is_usage_kept or wants_usage(self.body.document)


def is_emulated(ask: Ask) -> bool:
    """Tell whether the gateway makes the answer another one than the endpoint gives."""
    return bool(ask.emulated) or ask.gathering is not None or ask.is_one_call


class Notes:
    """What a client is told beside its answer, of the attempt that was made last."""

    __slots__ = ("dropped", "emulated")

    def __init__(self) -> None:
        self.emulated: tuple[str, ...] = ()
        self.dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parts:
    """A request in several."""

    asks: tuple[Ask, ...]
    join: Callable[[Sequence[bytes]], bytes]
    """Makes one answer of those to the parts, in their order; raises `BadAnswerError`."""


class Made(NamedTuple):
    """One attempt that was made, for whoever wants to know how a request was routed."""

    endpoint: str
    began_at: float
    """On the loop's clock, like all times here."""
    first_at: float | None
    """When its first content came; None where none came, and for answers that come as a whole."""
    ended_at: float
    outcome: str
    """The verdict's label."""
    error: str | None = None
    emulated: tuple[str, ...] = ()
    """The parameters that the gateway saw to."""
    dropped: tuple[str, ...] = ()
    """Those that were left out."""
    identity: EndpointIdentity | None = None
    """Which one it was of several that have the name: the replicas of a service."""


class Course:
    """What has happened to a request so far, over all its attempts."""

    __slots__ = (
        "attempts",
        "continuing",
        "deadline",
        "fallback",
        "first_at",
        "is_broken_off",
        "made",
        "may_restart",
        "rest",
        "skipped",
        "started_at",
        "status",
        "tokens",
        "total_s",
        "wake_at",
    )

    def __init__(
        self, now: float, total_s: float, *, may_restart: bool = False, continuing: Continuing | None = None
    ) -> None:
        self.attempts = 0
        self.made: list[Made] = []
        self.skipped: Sequence[Skipped] = ()
        """The endpoints that were passed over when the last one was chosen, with their reasons."""
        self.first_at: float | None = None
        """When the first content of the attempt that is under way came."""
        self.fallback = ""
        """The service or role that is asked in place of the one that was wanted."""
        self.started_at = now
        self.deadline = now + total_s
        """When the first content must have come, on the loop's clock."""
        self.total_s = total_s
        self.wake_at = now + HOLD_S
        """When a waiting client gets its next comment."""
        self.may_restart = may_restart
        """Whether another endpoint gives the answer anew when one breaks off in the middle."""
        self.continuing = continuing
        """What the client has got so far, where another endpoint goes on instead if that is possible."""
        self.rest: Ask | None = None
        """The request for what is missing, where the answer is gone on with; None where it is given from its start."""
        self.status = 0
        """The HTTP status of the answer; 0 while there is none."""
        self.tokens = 0
        """How many tokens were generated for it, as the endpoint says."""
        self.is_broken_off = False
        """Whether the client has got the beginning of an answer that will not go on."""

    def broke_off(self, now: float, rest: Ask | None = None) -> None:
        """Begin anew, or go on: there is as much time for the next first content as there was for the first one."""
        self.is_broken_off = True
        self.rest = rest
        if rest is None:
            self.continuing = None
        self.deadline = now + self.total_s
        self.wake_at = now + COMMENT_S


class Result(NamedTuple):
    """An attempt that ends its request."""

    verdict: Verdict
    status: int = _OK
    body: bytes | None = None
    """The answer; None where it was streamed to the client."""
    error: str | None = None
    tokens: int = 0
    """How many tokens the endpoint says that it generated."""


Steps = Generator[Ask, Result, Result]
"""Yields what an endpoint is asked next and is sent the answer, whose verdict is `SUCCESS`; returns what ends the
attempt. An `AttemptError` is thrown into it, and ends the attempt where it is not caught."""


class AttemptError(Exception):
    """An attempt that another endpoint may make good."""

    def __init__(self, verdict: Verdict, error: str, status: int = 0, body: bytes = b"") -> None:
        super().__init__(error)
        self.verdict = verdict
        self.error = error
        self.status = status
        self.body = body
        """What the endpoint answered, as clients may see it."""


async def keep_alive(endpoint: str, course: Course, client: Client) -> float:
    """Let a client that waits for its stream know that somebody is there; return when to do so again.

    `endpoint` is empty while none is asked. Raises `ClientLeftError`.
    """
    if not client.is_started:
        await client.start(endpoint, course.attempts, course.fallback)
    await client.send(_COMMENT)
    course.wake_at += COMMENT_S
    return course.wake_at

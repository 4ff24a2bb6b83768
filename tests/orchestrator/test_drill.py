"""Which endpoints a drill breaks, and what it says of what clients saw."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from orchestrator.cli.drill import in_service, mend
from orchestrator.cli.exits import CommandError
from orchestrator.drill import (
    AFTER,
    BEFORE,
    BROKEN,
    Phase,
    Seen,
    UnknownTargetError,
    as_they_are,
    broken_by,
    data,
    is_passed,
    lines,
    out_words,
    roles_hit,
    unless_out,
)
from orchestrator.gateway_api import GatewayApi
from schemas.admin import BreakerReport, EndpointsReport, EndpointStatistics


def endpoint(name: str, port: int, *roles: str) -> EndpointStatistics:
    return EndpointStatistics(
        endpoint=name,
        role=roles[0] if roles else "",
        instance=f"10.0.0.{port}:8000",
        roles=tuple(f"{role}/{name}" for role in roles),
        model="m",
        health="ready",
        breaker=BreakerReport(state="closed"),
        in_flight=0,
        answers=0,
        failures=0,
    )


def reported(*endpoints: EndpointStatistics) -> httpx.Response:
    return httpx.Response(200, text=EndpointsReport(stack="lab", pid=1, endpoints=endpoints).model_dump_json())


ONE, TWO, THREE = endpoint("one", 1, "chat", "coding"), endpoint("two", 2, "chat"), endpoint("three", 3, "embedding")
NODES = {"10.0.0.1:8000": "box", "10.0.0.3:8000": "box", "10.0.0.2:8000": "mac"}


@pytest.mark.parametrize(
    ("name", "broken"),
    [("one", (ONE,)), ("chat/two", (TWO,)), ("embedding/three", (THREE,)), ("box", (ONE, THREE)), ("mac", (TWO,))],
)
def test_a_name_means_an_endpoint_or_all_of_a_node(name: str, broken: tuple[EndpointStatistics, ...]) -> None:
    assert broken_by(name, (ONE, TWO, THREE), NODES) == broken


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(UnknownTargetError, match="'boxx'; did you mean 'box'"):
        broken_by("boxx", (ONE, TWO, THREE), NODES)
    with pytest.raises(UnknownTargetError, match="there are: box, mac, one, three, two"):
        broken_by("zebra", (ONE, TWO, THREE), NODES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"breaker": BreakerReport(state="isolated")}, "isolated by hand"),
        ({"breaker": BreakerReport(state="open", retry_s=9.0)}, "open already"),
        ({"breaker": BreakerReport(state="half-open")}, "half-open already"),
        ({"health": "wedged"}, "wedged"),
        ({"health": "misconfigured"}, "misconfigured"),
        ({"health": "alive", "failed_checks": 2}, "unready"),
    ],
)
def test_who_gets_no_requests_anyway_is_left_alone(change: dict[str, Any], words: str) -> None:
    """Mending puts endpoints back; one that hung before the drill would get requests after it, and hang them."""
    out = TWO.model_copy(update=change)
    assert unless_out((ONE, out)) == ((ONE,), (out,))
    assert unless_out((out,)) == ((), (out,))
    assert out_words(out) == words


async def test_one_endpoint_that_cannot_be_mended_keeps_no_other_from_it() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return reported(ONE, TWO, THREE)
        asked.append(json.loads(request.content)["endpoint"])
        if asked[-1] == "two":
            return httpx.Response(200)
        return httpx.Response(409, json={"error": {"message": f"not {asked[-1]}"}})

    def make() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(answer))

    failure = await mend(GatewayApi("lab", "http://gateway", make, None), (ONE, TWO, THREE))
    assert asked == ["one", "two", "three"]
    assert str(failure) == "not one"
    assert await mend(GatewayApi("lab", "http://gateway", make, None), (TWO,)) is None


async def test_what_was_isolated_by_hand_during_the_drill_stays_so() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return reported(ONE, TWO.model_copy(update={"breaker": BreakerReport(state="isolated")}))
        asked.append(json.loads(request.content)["endpoint"])
        return httpx.Response(200)

    def make() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(answer))

    assert await mend(GatewayApi("lab", "http://gateway", make, None), (ONE, TWO, THREE)) is None
    assert asked == ["one"], "two is somebody's, and three has left the stack"


def test_a_later_look_tells_how_the_chosen_are_then() -> None:
    later = TWO.model_copy(update={"breaker": BreakerReport(state="isolated")})
    assert as_they_are((ONE, TWO), (later, THREE)) == (later,)


def test_a_drill_ends_where_nothing_that_it_could_break_is_left() -> None:
    assert in_service((ONE,), "one", "lab") == (ONE,)
    with pytest.raises(CommandError, match="Nothing of 'one' gets requests"):
        in_service((), "one", "lab")


def test_all_roles_that_lead_there_are_asked() -> None:
    assert roles_hit((ONE, THREE)) == ("chat", "coding", "embedding")


def test_a_drill_that_nobody_notices_passes_and_says_who_answered() -> None:
    phases = [
        Phase(BEFORE, [Seen("chat", 0.2, 200, "one", attempts=1)] * 3),
        Phase(BROKEN, [Seen("chat", 0.5, 200, "two", attempts=2), Seen("chat", 0.2, 200, "two", attempts=1)]),
        Phase(AFTER, [Seen("chat", 0.2, 200, "one", attempts=1)]),
    ]

    assert is_passed(phases)
    assert list(lines("one", (ONE,), phases)) == [
        "Drill of one: broken were one (10.0.0.1:8000).",
        "before  chat            3 answered, 0 failed, median 0.20 s, longest 0.20 s: one 3",
        "broken  chat            2 answered, 0 failed, median 0.35 s, longest 0.50 s: two 2; 1 after a failed attempt",
        "after   chat            1 answered, 0 failed, median 0.20 s, longest 0.20 s: one 1",
        "Verdict: all 6 requests were answered; clients noticed nothing but 0.30 s more for the slowest answer.",
    ]
    assert data("one", (ONE,), phases)["phases"][1]["retried"] == 1


def test_one_failed_request_fails_the_drill_and_is_told() -> None:
    broken = [Seen("chat", 0.1, 503, fault="status 503: nobody is left"), Seen("chat", 0.1, 200, fallback="spare")]
    phases = [Phase(BEFORE, [Seen("chat", 0.1, 200, "one")]), Phase(BROKEN, broken), Phase(AFTER, broken[1:])]

    assert not is_passed(phases)
    told = list(lines("one", (ONE,), phases))
    assert told[2] == (
        "broken  chat            1 answered, 1 failed, median 0.10 s, longest 0.10 s: spare 1; 1 by the fallback spare"
    )
    assert told[-2:] == [
        "  1 x status 503: nobody is left",
        "Verdict: 1 of 4 requests failed; clients would have noticed.",
    ]


def test_a_drill_without_a_request_shows_nothing_and_does_not_pass() -> None:
    assert not is_passed([Phase(BEFORE), Phase(BROKEN), Phase(AFTER)])
    assert list(lines("one", (ONE,), [Phase(BROKEN)]))[-1] == "No request was made: nothing was shown."

"""Who is chosen, and why the others are not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.routing.breaker import Closed, HalfOpen, Open
from runtime.gateway.routing.pool import Standing
from runtime.gateway.routing.select import TRIAL_S, choose
from runtime.gateway.routing.table import EndpointIdentity, Missing, Route, Target
from schemas.policy import Breaker, Timeouts

NOW = 100.0


def target(name: str, weight: int = 1, limit: int | None = None) -> Target:
    identity = EndpointIdentity("http", name, 80, "", "openai", "m")
    return Target(name, "chat", identity, weight, None, Breaker(), Timeouts(), limit, "m")


def route(*tiers: list[Target], missing: tuple[Missing, ...] = ()) -> Route:
    return Route("chat", tuple(tuple(tier) for tier in tiers), missing, 3, 600.0)


def pick(one: Route, standings: dict[str, Standing], turn: int = 0, tried: tuple[str, ...] = ()) -> str | None:
    everyone = {target.identity: standings.get(target.name, Standing()) for tier in one.tiers for target in tier}
    banned = {identity for identity in everyone if identity.host in tried}
    chosen = choose(one, everyone, banned, NOW, turn).target
    return chosen.name if chosen else None


A, B, C = target("a"), target("b"), target("c")


def test_a_better_tier_is_taken_however_loaded() -> None:
    assert pick(route([A], [B]), {"a": Standing(in_flight=50)}) == "a"


def test_the_next_tier_is_taken_when_the_first_has_nobody() -> None:
    for state in (Standing(breaker=Open(1, 200.0, 1)), Standing(busy_until=101.0)):
        assert pick(route([A], [B]), {"a": state}) == "b"
    assert pick(route([A], [B]), {}, tried=("a",)) == "b"
    assert pick(route([target("a", limit=2)], [B]), {"a": Standing(in_flight=2)}) == "b"


def test_fewest_in_flight_wins_inside_a_tier() -> None:
    assert pick(route([A, B, C]), {"a": Standing(in_flight=2), "b": Standing(in_flight=1), "c": Standing(2)}) == "b"


def test_ties_take_turns() -> None:
    picks = [pick(route([A, B, C]), {}, turn) for turn in range(6)]
    assert picks == ["a", "b", "c", "a", "b", "c"]


def test_weights_share_the_turns() -> None:
    picks = Counter(pick(route([target("a", 3), target("b", 1)]), {}, turn) for turn in range(40))
    assert picks == {"a": 30, "b": 10}


def test_an_endpoint_that_fails_at_once_does_not_look_idle() -> None:
    failing = {"a": Standing(breaker=Closed(0, failures=2)), "b": Standing(in_flight=1)}
    assert pick(route([A, B]), failing) == "b"


def test_an_endpoint_without_the_model_comes_last_but_comes() -> None:
    absent = {"a": Standing(absent_until=200.0)}
    assert pick(route([A], [B]), absent) == "b"
    assert pick(route([A]), absent) == "a"


def test_every_skipped_endpoint_has_its_reason_and_its_time() -> None:
    gone = Missing("d", "chat", "not running", "m")
    states = {
        A.identity: Standing(breaker=Open(1, 130.0, 1)),
        B.identity: Standing(breaker=HalfOpen(2, 110.0, 1)),
        C.identity: Standing(busy_until=104.0),
    }
    choice = choose(route([A, B, C], missing=(gone,)), states, (), NOW, 0)
    assert choice.target is None
    assert [(skip.name, skip.reason, skip.retry_s) for skip in choice.skipped] == [
        ("a", "open", 30.0),
        ("b", "half-open", TRIAL_S),
        ("c", "busy", 4.0),
        ("d", "not running", None),
    ]


STATES = st.builds(
    Standing,
    in_flight=st.integers(0, 5),
    breaker=st.sampled_from([Closed(), Closed(0, 2), Open(1, 90.0, 1), Open(1, 110.0, 1), HalfOpen(1, 110.0, 1)]),
    busy_until=st.sampled_from([0.0, 110.0]),
    absent_until=st.sampled_from([0.0, 110.0]),
)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), STATES), min_size=1, max_size=7), st.integers(0, 99))
def test_whoever_may_be_called_is_found_and_nobody_else(drawn: list[tuple[int, int, Standing]], turn: int) -> None:
    tiers: list[list[Target]] = [[], [], []]
    states = {}
    for index, (tier, weight, state) in enumerate(drawn):
        one = target(f"e{index}", weight)
        tiers[tier].append(one)
        states[one.identity] = state
    fit = {
        identity
        for identity, state in states.items()
        if state.busy_until <= NOW and not isinstance(state.breaker, HalfOpen)
        if not (isinstance(state.breaker, Open) and state.breaker.until > NOW)
    }
    chosen = choose(route(*(tier for tier in tiers if tier)), states, (), NOW, turn).target
    assert (chosen is None) == (not fit)
    if chosen is not None:
        assert chosen.identity in fit
        assert replace(states[chosen.identity]) == states[chosen.identity], "choosing changes nothing"

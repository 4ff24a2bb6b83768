"""Who is chosen, and why the others are not."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gateway.routing.breaker import Closed, HalfOpen, Isolated, Open
from runtime.gateway.routing.select import TRIAL_S, choose, in_use
from runtime.gateway.routing.standing import Standing
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


def skips(one: Route, states: dict[EndpointIdentity, Standing]) -> list[tuple[str, str, float | None]]:
    return [(skip.name, skip.reason, skip.retry_s) for skip in choose(one, states, (), NOW, 0).skipped]


def test_why_an_endpoint_says_that_it_is_passing_is_told() -> None:
    states = {
        A.identity: Standing(busy_until=105.0, asleep="loading"),
        B.identity: Standing(busy_until=106.0, asleep="model failed"),
        C.identity: Standing(busy_until=107.0, asleep="cold"),
    }
    assert skips(route([A, B, C]), states) == [("a", "loading", 5.0), ("b", "model failed", 6.0), ("c", "busy", 7.0)]


def test_an_isolated_endpoint_is_skipped_and_nobody_knows_for_how_long() -> None:
    assert skips(route([A]), {A.identity: Standing(breaker=Isolated(1))}) == [("a", "isolated", None)]


def test_a_trial_that_is_about_to_end_is_waited_for_no_longer() -> None:
    assert skips(route([A]), {A.identity: Standing(breaker=HalfOpen(1, NOW + 0.25, 1))}) == [("a", "half-open", 0.25)]


def test_a_full_endpoint_is_free_again_after_its_share_of_an_answer() -> None:
    full = Standing(in_flight=4)
    assert skips(route([target("a", limit=4)]), {A.identity: full}) == [("a", "full", 0.25)]
    full.pace.answered(8.0)
    (skip,) = skips(route([target("a", limit=4)]), {A.identity: full})
    assert skip == ("a", "full", 2.0)
    assert pick(route([target("a", limit=5)]), {"a": full}) == "a"


def test_requests_of_the_last_minute_count_against_the_rate() -> None:
    limited = replace(A, rpm=2)
    for begun, expected in (
        ([], []),
        ([NOW - 1], []),
        ([NOW - 59, NOW - 50], [("a", "rate limit", 1.0)]),
        ([NOW - 60, NOW - 50], []),
        ([NOW - 59, NOW - 50, NOW - 10], [("a", "rate limit", 10.0)]),
    ):
        states = {A.identity: Standing(begun=deque(begun))}
        assert skips(route([limited]), states) == expected


def test_a_probed_endpoint_is_named_as_a_trial_and_not_risked() -> None:
    due = Open(1, 90.0, 1)
    states = {
        A.identity: Standing(breaker=due, is_probed=True),
        B.identity: Standing(breaker=due, is_probed=True),
    }
    choice = choose(route([A], [B]), states, (), NOW, 0)
    assert (choice.target, choice.trial) == (None, A)
    assert [(skip.name, skip.reason, skip.retry_s) for skip in choice.skipped] == [
        ("a", "open", TRIAL_S),
        ("b", "open", TRIAL_S),
    ]
    states[A.identity].asleep = "cold"
    assert choose(route([A], [B]), states, (), NOW, 0).target == A, "only a request wakes its model"
    states[B.identity].is_probed = False
    assert choose(route([B], [A]), states, (), NOW, 0).target == B, "nobody else tries it"


def test_who_failed_its_last_check_is_named_as_a_last_resort() -> None:
    unready = Standing(is_probed=True, failed_checks=1)
    for name, states in (
        ("b", {A.identity: unready, B.identity: Standing(in_flight=9)}),
        (None, {A.identity: unready}),
    ):
        one = route([A], *([[B]] if name else []))
        choice = choose(one, states, (), NOW, 0)
        assert (choice.target.name if choice.target else None) == name
        assert choice.trial is (None if name else A) or name
        assert [(skip.name, skip.reason, skip.retry_s) for skip in choice.skipped] == [("a", "unready", None)]
    assert pick(route([A], [B]), {"a": replace(unready, is_probed=False)}) == "a", "who takes no probes is not checked"
    assert pick(route([A], [B]), {"a": replace(unready, asleep="cold")}) == "a", "only a request can wake it"


def test_of_two_that_were_just_closed_or_lack_the_model_the_first_is_taken() -> None:
    absent = Standing(absent_until=NOW + 1)
    warming = Standing(in_flight=1, breaker=Closed(closed_at=NOW))
    assert pick(route([A], [B]), {"a": absent, "b": absent}) == "a"
    assert pick(route([A], [B]), {"a": absent, "b": warming}) == "b"
    assert pick(route([A], [B], [C]), {"a": warming, "b": warming, "c": Standing(in_flight=9)}) == "c"
    assert pick(route([A, B]), {"a": replace(warming, in_flight=2), "b": warming}) == "b"
    assert pick(route([A, B]), {"a": Standing(breaker=Closed(closed_at=NOW))}) == "a", "one at once is always given"
    assert pick(route([A, B]), {"a": Standing(absent_until=NOW)}) == "a"


def test_failures_and_weights_count_like_requests_in_flight() -> None:
    assert pick(route([A, B]), {"a": Standing(breaker=Open(1, 90.0, 1)), "b": Standing()}) == "b"
    assert pick(route([target("a", 4), B]), {"a": Standing(in_flight=3), "b": Standing(in_flight=1)}) == "a"
    assert pick(route([target("a", 2), B]), {"a": Standing(in_flight=3), "b": Standing(in_flight=1)}) == "b"


def test_who_holds_the_beginning_of_the_prompt_is_drawn_to_as_far_as_it_may() -> None:
    for in_flight, allowed, expected in ((2, 2.0, "b"), (3, 2.0, "a"), (0, 0.0, "b")):
        states = {A.identity: Standing(), B.identity: Standing(in_flight=in_flight), C.identity: Standing(in_flight=9)}
        chosen = choose(route([A, B, C]), states, (), NOW, 0, {B.identity: allowed}).target
        assert chosen is not None
        assert chosen.name == expected
    states = {each.identity: Standing() for each in (A, B, C)}
    chosen = choose(route([A, B, C]), states, (), NOW, 0, {B.identity: 1.0, C.identity: 3.0}).target
    assert chosen == C, "who holds more"
    states[C.identity].in_flight = 1
    chosen = choose(route([A, B, C]), states, (), NOW, 0, {B.identity: 3.0, C.identity: 3.0}).target
    assert chosen == B, "of the same the idler one"


def test_who_was_tried_is_told_so_before_anything_else() -> None:
    choice = choose(route([A]), {A.identity: Standing(breaker=Open(1, 130.0, 1))}, (A.identity,), NOW, 0)
    assert [(skip.name, skip.reason) for skip in choice.skipped] == [("a", "tried")]


def test_an_open_endpoint_that_may_be_tried_counts_as_one_request() -> None:
    due = Standing(breaker=Open(1, 90.0, 1))
    assert pick(route([A, B]), {"a": due, "b": Standing(in_flight=2)}) == "a"
    assert pick(route([B, A]), {"a": due, "b": Standing(in_flight=1)}) == "b", "a tie: in turns"


def test_what_an_endpoint_may_have_more_for_the_prompt_is_shared_by_its_weight() -> None:
    heavy = target("b", 4)
    states = {A.identity: Standing(), heavy.identity: Standing(in_flight=4)}
    for allowed, expected in ((4.0, "b"), (3.9, "a")):
        chosen = choose(route([A, heavy]), states, (), NOW, 0, {heavy.identity: allowed}).target
        assert chosen is not None
        assert chosen.name == expected


def test_what_is_in_use_is_the_rung_that_would_answer_and_who_shares_it() -> None:
    below = route([C])
    above = replace(route([A, B]), fallback=below)
    well = {each.identity: Standing() for each in (A, B, C)}
    assert in_use(above, well, NOW) == (above, {A.identity, B.identity})
    one_open = {**well, A.identity: Standing(breaker=Open(1, 110.0, 1))}
    assert in_use(above, one_open, NOW) == (above, {B.identity})
    both_open = {**one_open, B.identity: Standing(breaker=Open(1, 110.0, 1))}
    assert in_use(above, both_open, NOW) == (below, {C.identity})
    assert in_use(route([A], [B]), one_open, NOW)[1] == {B.identity}, "the second tier"
    assert in_use(route([A]), one_open, NOW) == (None, frozenset())
    for on_trial in (Standing(is_probed=True, failed_checks=1), Standing(is_probed=True, breaker=Open(1, 90.0, 1))):
        assert in_use(above, {**well, A.identity: on_trial}, NOW) == (above, {B.identity}), "no request is risked"


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


ALIAS = replace(route([A], [B]), is_alias=True)


@pytest.mark.parametrize("away", [Standing(asleep="loading"), Standing(is_unloaded=True)], ids=["asleep", "unloaded"])
def test_an_alias_passes_over_whose_model_is_not_in_memory_while_another_can_answer(away: Standing) -> None:
    assert pick(ALIAS, {"a": away}) == "b"
    assert pick(ALIAS, {"a": away, "b": replace(away)}) == "a", "somebody has to load it"
    assert pick(route([A], [B]), {"a": away}) == "a", "a role says itself who comes first"


def test_whom_a_request_is_risked_on_comes_with_who_was_skipped() -> None:
    warming = Standing(breaker=Closed(closed_at=NOW), in_flight=1)
    for last in (Standing(absent_until=200.0), warming):
        states = {A.identity: Standing(breaker=Open(1, 130.0, 1)), B.identity: last}
        choice = choose(route([A], [B]), states, (), NOW, 0)
        assert choice.target is B
        assert [(skip.name, skip.reason) for skip in choice.skipped] == [("a", "open")]


def test_of_two_that_come_back_the_one_that_holds_the_prompt_is_taken() -> None:
    def warming() -> Standing:
        return Standing(breaker=Closed(closed_at=NOW), in_flight=1)

    states = {A.identity: warming(), B.identity: warming()}
    assert choose(route([A, B]), states, (), NOW, 0, {B.identity: 2.0}).target is B


def test_why_an_instance_is_missing_is_told_in_its_own_words() -> None:
    gone = Missing("d", "chat", "not running", "m", detail="its node is silent")
    (skip,) = choose(route([], missing=(gone,)), {}, (), NOW, 0).skipped
    assert (skip.name, skip.reason, skip.detail) == ("d", "not running", "its node is silent")


def test_of_two_that_hold_as_much_the_one_whose_turn_it_is_is_taken() -> None:
    states = {each.identity: Standing() for each in (A, B)}
    drawn = dict.fromkeys(states, 2.0)
    picks = [choose(route([A, B]), states, (), NOW, turn, drawn).target for turn in range(4)]
    assert picks == [A, B, A, B]


def test_a_trial_that_may_be_given_away_counts_as_one_request() -> None:
    due = Standing(breaker=HalfOpen(1, 90.0, 1))
    assert pick(route([B, A]), {"a": due, "b": Standing(in_flight=2)}) == "a"
    assert pick(route([B, A]), {"a": due, "b": Standing(in_flight=1)}) == "b", "a tie: in turns"

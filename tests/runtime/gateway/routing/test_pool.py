"""What survives requests and reloads."""

from __future__ import annotations

import json
from typing import Any

from runtime.gateway.routing import by_hand
from runtime.gateway.routing.breaker import Closed, Isolated, Open
from runtime.gateway.routing.budget import LEAST_RETRIES
from runtime.gateway.routing.build import build_table
from runtime.gateway.routing.checks import check_due
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import CLIENT_LEFT, SUCCESS, Verdict, judge_fault, judge_status
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.select import Choice
from runtime.gateway.routing.standing import Standing
from runtime.gateway.routing.table import EndpointIdentity, RoutingTable
from schemas.stack import Stack
from tests.runtime.gateway.harness import stack_document

FAILED = judge_fault("refused", is_committed=False)


def table(endpoints: dict[str, str], **more: Any) -> RoutingTable:
    stack = Stack.model_validate_json(json.dumps(stack_document(endpoints, **more)))
    return build_table(stack, None, environ={}, worker_token=None)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def pool_with(found: RoutingTable) -> tuple[Pool, Clock]:
    clock = Clock()
    pool = Pool(clock, lambda: 0.0)
    pool.adopt(found)
    return pool, clock


def lease(pool: Pool, found: RoutingTable, name: str = "chat") -> Lease:
    taken = pool.lease(found.routes[name], ())
    assert isinstance(taken, Lease)
    return taken


ONE = {"a": "http://h1:1"}


def test_a_lease_counts_until_it_is_given_back_once() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    first, second = lease(pool, found), lease(pool, found)
    (standing,) = pool.standings.values()
    assert standing.in_flight == 2
    for _ in range(3):
        first.finish(SUCCESS)
        first.release()
    assert standing.in_flight == 1
    second.release()
    assert standing.in_flight == 0


def test_an_unchanged_endpoint_keeps_its_breaker_across_a_reload() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    for _ in range(3):
        lease(pool, found).finish(FAILED, "refused")
    pool.adopt(table(ONE, aliases={"x": ["chat"]}))
    (standing,) = pool.standings.values()
    assert isinstance(standing.breaker, Open)
    assert standing.last_error == "refused"


def test_a_changed_url_starts_fresh_at_once() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    for _ in range(3):
        lease(pool, found).finish(FAILED)
    changed = table({"a": "http://h1:2"})
    pool.adopt(changed)
    assert isinstance(lease(pool, changed), Lease)


def test_a_changed_threshold_keeps_the_state_and_counts_by_the_new_one() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    for _ in range(2):
        lease(pool, found).finish(FAILED)
    stricter = table(ONE, chat={"breaker": {"failure_threshold": 5}})
    pool.adopt(stricter)
    for expected in (3, 4):
        lease(pool, stricter).finish(FAILED)
        (standing,) = pool.standings.values()
        assert isinstance(standing.breaker, Closed)
        assert standing.breaker.failures == expected
    lease(pool, stricter).finish(FAILED)
    assert isinstance(standing.breaker, Open)


def test_a_removed_endpoint_is_dropped_when_it_is_idle() -> None:
    found = table({"a": "http://h1:1", "b": "http://h2:1"})
    pool, _ = pool_with(found)
    held = lease(pool, found, "a")
    pool.adopt(table({"c": "http://h3:1"}))
    assert {identity.host for identity in pool.standings} == {"h1", "h3"}
    held.finish(SUCCESS)
    assert {identity.host for identity in pool.standings} == {"h3"}


def test_a_request_with_an_old_table_can_still_choose() -> None:
    found = table({"a": "http://h1:1", "b": "http://h2:1"})
    pool, _ = pool_with(found)
    pool.adopt(table({"c": "http://h3:1"}))
    late = lease(pool, found)
    late.finish(SUCCESS)
    assert pool.standings[late.target.identity].in_flight == 0 if late.target.identity in pool.standings else True


def test_a_busy_endpoint_is_skipped_for_as_long_as_it_said() -> None:
    found = table(ONE)
    pool, clock = pool_with(found)
    lease(pool, found).finish(judge_status(429, "7", ""))
    assert isinstance(pool.lease(found.routes["chat"], ()), Choice)
    clock.now = 7.1
    lease(pool, found).release()


def test_half_open_lets_one_of_many_through() -> None:
    found = table(ONE)
    pool, clock = pool_with(found)
    for _ in range(3):
        lease(pool, found).finish(FAILED)
    clock.now = 61.0
    taken = [pool.lease(found.routes["chat"], ()) for _ in range(100)]
    trials = [one for one in taken if isinstance(one, Lease)]
    assert len(trials) == 1
    trials[0].release()
    lease(pool, found).finish(SUCCESS)
    (standing,) = pool.standings.values()
    assert isinstance(standing.breaker, Closed)


def test_who_finds_a_trial_on_its_way_is_told_to_come_back_soon() -> None:
    found = table(ONE)
    pool, clock = pool_with(found)
    for _ in range(3):
        lease(pool, found).finish(FAILED)
    clock.now = 61.0
    lease(pool, found)
    choice = pool.lease(found.routes["chat"], ())
    assert isinstance(choice, Choice)
    assert [(skip.reason, skip.retry_s) for skip in choice.skipped] == [("half-open", 1.0)]


def test_a_renewed_endpoint_is_used_at_once_and_old_results_do_not_count() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    old = [lease(pool, found) for _ in range(6)]
    for one in old[:3]:
        one.finish(FAILED)
    (identity,) = pool.standings
    pool.renew([identity])
    for one in old[3:]:
        one.finish(FAILED)
    assert pool.standings[identity].breaker == Closed(2)
    lease(pool, found).finish(SUCCESS)


def test_what_a_renewed_endpoint_s_predecessor_does_opens_nothing_although_it_was_closed() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    old = [lease(pool, found) for _ in range(6)]
    for one in old[:2]:
        one.finish(FAILED)
    (identity,) = pool.standings
    pool.renew([identity])
    for one in old[2:]:
        one.finish(FAILED)
    assert pool.standings[identity].breaker == Closed(1)
    assert not standing_of(pool).stats.changes, "nothing has changed that anybody would want to know of"


def test_an_answer_shows_more_than_what_the_server_said_when_it_was_asked_before() -> None:
    found = table(ONE)
    pool, clock = pool_with(found)
    (identity,) = pool.standings
    woken: list[EndpointIdentity] = []
    pool.on_waking = woken.append
    clock.now = 10.0
    lease(pool, found).finish(SUCCESS)
    pool.hear(identity, is_loaded=False, asked_at=9.0)
    assert (standing_of(pool).is_unloaded, woken) == (False, [identity]), "it is asked again"
    pool.hear(identity, is_loaded=False, asked_at=11.0)
    assert standing_of(pool).is_unloaded


def test_an_answer_is_a_sign_of_life_and_puts_the_next_check_off() -> None:
    found = table(ONE, chat={"health_check": {"interval_s": 30}})
    pool, clock = pool_with(found)
    (target,) = found.routes["chat"].targets()
    standing = pool.standings[target.identity]
    assert check_due(standing, target.check_s, clock.now) == 30.0
    clock.now = 20.0
    lease(pool, found).finish(SUCCESS)
    assert check_due(standing, target.check_s, clock.now) == 50.0


def test_a_probe_is_a_trial_and_no_request_is_risked_beside_it() -> None:
    found = table({"a": "http://h1:1", "b": "http://h2:1"}, chat={"breaker": {"failure_threshold": 1}})
    pool, clock = pool_with(found)
    first = lease(pool, found)
    first.finish(FAILED)
    standing = pool.standings[first.target.identity]
    standing.is_probed = True
    clock.now = 61.0
    second = lease(pool, found)
    assert second.target.name == "b", "the trial is the probe's"
    taken = pool.lease(found.routes["a"], (), may_risk=False)
    assert isinstance(taken, Choice) and taken.trial == first.target
    probe = pool.lease_probe(first.target, 30.0)
    assert probe is not None
    assert pool.lease_probe(first.target, 30.0) is None, "one at a time"
    assert isinstance(pool.lease(found.routes["a"], ()), Choice)
    probe.finish(SUCCESS)
    assert lease(pool, found).target.name == "a"


def check(pool: Pool, found: RoutingTable, ended: Verdict) -> None:
    (target,) = found.routes["a"].targets()
    probe = pool.lease_probe(target, 30.0)
    assert probe is not None
    probe.finish(ended)


def test_a_check_that_fails_is_no_request_s_failure_and_takes_requests_away() -> None:
    found = table({"a": "http://h1:1", "b": "http://h2:1"})
    pool, _ = pool_with(found)
    standing = pool.standings[next(found.routes["a"].targets()).identity]
    standing.is_probed = True
    lease(pool, found).finish(FAILED)
    for failed in range(1, 9):
        check(pool, found, FAILED)
        assert (standing.failed_checks, standing.stats.failures) == (failed, 1)
        assert isinstance(standing.breaker, Closed) and standing.breaker.failures == 1
        taken = lease(pool, found)
        assert (taken.target.name, taken.passed_over[0].reason) == ("b", "unready")
        taken.finish(CLIENT_LEFT)
    check(pool, found, SUCCESS)
    assert standing.failed_checks == 0
    assert lease(pool, found).target.name == "a"


def test_who_is_not_ready_is_asked_where_nobody_else_is_and_an_answer_shows_otherwise() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    standing_of(pool).is_probed = True
    check(pool, found, FAILED)
    assert isinstance(pool.lease(found.routes["chat"], (), may_risk=False), Choice)
    lease(pool, found).finish(SUCCESS)
    assert standing_of(pool).failed_checks == 0
    for ends in (by_hand.close, lambda pool, identity: pool.renew([identity])):
        check(pool, found, FAILED)
        ends(pool, next(found.routes["chat"].targets()).identity)
        assert standing_of(pool).failed_checks == 0


def test_the_trial_of_an_open_breaker_counts_though_it_is_a_check() -> None:
    found = table(ONE, chat={"breaker": {"failure_threshold": 1}})
    pool, clock = pool_with(found)
    lease(pool, found).finish(FAILED)
    clock.now = 61.0
    check(pool, found, FAILED)
    breaker = standing_of(pool).breaker
    assert isinstance(breaker, Open) and breaker.streak == 2
    assert standing_of(pool).failed_checks == 0


def test_a_late_check_says_nothing_of_a_breaker_that_was_closed_meanwhile() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    (target,) = found.routes["chat"].targets()
    probe = pool.lease_probe(target, 30.0)
    assert probe is not None
    by_hand.close(pool, target.identity)
    probe.finish(FAILED)
    assert standing_of(pool).failed_checks == 0


def test_a_last_resort_is_risked() -> None:
    found = table(ONE, chat={"breaker": {"failure_threshold": 1}})
    pool, clock = pool_with(found)
    lease(pool, found).finish(FAILED)
    (standing,) = pool.standings.values()
    standing.is_probed = True
    clock.now = 61.0
    lease(pool, found).finish(SUCCESS)
    assert isinstance(standing.breaker, Closed)


def test_retries_have_a_budget() -> None:
    found = table({"a": "http://h1:1", "b": "http://h2:1"})
    pool, _ = pool_with(found)
    tried = [lease(pool, found, "a").target.identity]
    retries = [pool.lease(found.routes["chat"], tried) for _ in range(LEAST_RETRIES)]
    assert not pool.may_retry(found.routes["chat"])
    for retry in retries:
        assert isinstance(retry, Lease)
        retry.finish(CLIENT_LEFT)
    assert pool.may_retry(found.routes["chat"])


def standing_of(pool: Pool) -> Standing:
    (standing,) = pool.standings.values()
    return standing


def opened(pool: Pool, found: RoutingTable) -> None:
    for _ in range(3):
        lease(pool, found).finish(FAILED)
    assert isinstance(standing_of(pool).breaker, Open)


def panic(pool: Pool, found: RoutingTable, tried: tuple[EndpointIdentity, ...] = ()) -> Lease | None:
    return pool.lease_panic(found.routes["chat"], tried)


def test_in_a_panic_an_open_endpoint_is_tried_and_an_answer_closes_it() -> None:
    found = table(ONE, chat={"breaker": {"panic": "try"}})
    pool, _ = pool_with(found)
    assert panic(pool, found) is None, "nothing is open"
    opened(pool, found)
    state = standing_of(pool).breaker
    for _ in range(5):
        taken = panic(pool, found)
        assert taken is not None
        taken.finish(FAILED)
        assert standing_of(pool).breaker is state, "failures in a panic make nothing worse"
    taken, other = panic(pool, found), panic(pool, found)
    assert taken is not None
    assert other is not None
    assert standing_of(pool).in_flight == 2
    taken.confirm()
    assert isinstance(standing_of(pool).breaker, Closed), "at its first content"
    taken.finish(FAILED)
    assert standing_of(pool).breaker.failures == 1, "what comes after that counts"
    other.finish(SUCCESS)
    assert standing_of(pool).breaker.failures == 1, "the other one was let through before"
    assert standing_of(pool).in_flight == 0
    assert pool.may_retry(found.routes["chat"])


def test_nobody_panics_where_the_files_do_not_say_so() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    opened(pool, found)
    assert panic(pool, found) is None


def test_a_panic_is_one_too_where_the_only_closed_endpoint_fails_its_checks_and_the_request() -> None:
    found = table({"a": "http://h1:1", "b": "http://h2:1"}, chat={"breaker": {"panic": "try", "failure_threshold": 2}})
    pool, _ = pool_with(found)
    a, b = (target.identity for target in found.routes["chat"].targets())
    for _ in range(2):
        opened = pool.lease(found.routes["chat"], (a,))
        assert isinstance(opened, Lease)
        opened.finish(FAILED)
    assert panic(pool, found, (a,)) is None, "the other one is well as far as anybody knows"
    check(pool, found, FAILED)
    assert panic(pool, found) is None, "it is asked first, as the last resort"
    taken = panic(pool, found, (a,))
    assert taken is not None and taken.target.identity == b


def test_in_a_panic_nobody_is_asked_who_may_not_be_asked() -> None:
    found = table(
        {"a": "http://h1:1", "b": "http://h2:1"},
        chat={"breaker": {"panic": "try", "failure_threshold": 1}, "limits": {"max_in_flight": 2}},
    )
    pool, clock = pool_with(found)
    a, b = (target.identity for target in found.routes["chat"].targets())
    lease(pool, found).finish(FAILED)
    assert panic(pool, found) is None, "one is closed"
    lease(pool, found).finish(FAILED)
    first, second = panic(pool, found), panic(pool, found)
    assert first is not None
    assert second is not None
    assert [first.target.identity, second.target.identity] == [a, b], "who has fewest requests"
    for lease_ in (first, second):
        lease_.release()
    only_b = panic(pool, found, (a,))
    assert only_b is not None
    assert only_b.target.identity == b
    assert only_b.is_retry
    only_b.finish(judge_status(429, "60", ""))
    assert [each.target.identity for each in (panic(pool, found), panic(pool, found)) if each] == [a, a]
    assert panic(pool, found) is None, "one is full, the other busy"
    clock.now = 60.0
    by_hand.isolate(pool, b)
    assert panic(pool, found) is None, "or isolated"


def test_slow_calls_are_those_near_the_limit_or_what_the_files_say() -> None:
    for breaker_keys, seconds, expected in (
        ({}, 7.9, False),
        ({}, 8.0, True),
        ({"slow_call_s": 2.0}, 1.9, False),
        ({"slow_call_s": 2.0}, 2.0, True),
    ):
        found = table(ONE, chat={"breaker": breaker_keys, "timeouts": {"first_token_s": 10.0}})
        pool, clock = pool_with(found)
        taken = lease(pool, found)
        clock.now += seconds
        taken.confirm()
        clock.now += 100.0
        assert taken.is_slow(clock.now) == expected, "only the first content counts"
        taken.finish(SUCCESS)
        (slice_,) = standing_of(pool).breaker.window
        assert slice_.slow == expected


def test_a_whole_completion_and_one_that_waited_for_a_load_are_never_slow() -> None:
    found = table(ONE, chat={"breaker": {"slow_call_s": 1.0}})
    pool, clock = pool_with(found)
    whole = lease(pool, found)
    clock.now += 50.0
    assert not whole.is_slow(clock.now)
    standing_of(pool).asleep = "loading"
    waited = lease(pool, found)
    waited.confirm()
    assert not waited.is_slow(clock.now + 50.0)


def test_slow_calls_open_the_breaker_and_ask_for_a_trial() -> None:
    found = table(ONE, chat={"breaker": {"slow_call_s": 1.0}})
    pool, clock = pool_with(found)
    told: list[EndpointIdentity] = []
    pool.on_failure = told.append
    for _ in range(5):
        assert not told
        taken = lease(pool, found)
        clock.now += 2.0
        taken.confirm()
        taken.finish(SUCCESS)
    state = standing_of(pool).breaker
    assert isinstance(state, Open)
    assert state.cause == "slow calls"
    assert len(told) == 1


def test_what_a_breaker_did_is_remembered_with_its_causes() -> None:
    found = table(ONE, chat={"breaker": {"reset_timeout_s": 10.0}})
    pool, clock = pool_with(found)
    opened(pool, found)
    clock.now = 10.0
    trial = lease(pool, found)
    clock.now = 11.0
    trial.confirm()
    trial.finish(SUCCESS)
    (identity,) = pool.standings
    by_hand.isolate(pool, identity)
    by_hand.isolate(pool, identity)
    pool.renew([identity])
    by_hand.close(pool, identity)
    assert list(standing_of(pool).stats.changes) == [
        (0.0, "open", "failures in a row: refused"),
        (10.0, "half-open", "its time was over"),
        (11.0, "closed", "an answer"),
        (11.0, "isolated", "by hand"),
        (11.0, "closed", "by hand"),
    ]


def test_what_is_set_by_hand_outlives_a_reload() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    (identity,) = pool.standings
    by_hand.isolate(pool, identity)
    pool.adopt(table(ONE, chat={"breaker": {"failure_threshold": 9}}))
    choice = pool.lease(found.routes["chat"], ())
    assert isinstance(choice, Choice)
    assert [(skip.reason, skip.retry_s) for skip in choice.skipped] == [("isolated", None)]
    assert check_due(standing_of(pool), 5.0, 1e9) is None, "nobody probes it"
    by_hand.close(pool, identity)
    assert isinstance(pool.lease(found.routes["chat"], ()), Lease)


def test_closing_by_hand_forgets_what_kept_requests_away() -> None:
    found = table(ONE)
    pool, _ = pool_with(found)
    lease(pool, found).finish(judge_status(429, "60", ""))
    assert isinstance(pool.lease(found.routes["chat"], ()), Choice)
    (identity,) = pool.standings
    by_hand.close(pool, identity)
    assert isinstance(pool.lease(found.routes["chat"], ()), Lease)


def test_a_probe_by_hand_is_the_trial_of_an_open_breaker_and_shows_only_of_an_isolated_one() -> None:
    found = table(ONE)
    pool, clock = pool_with(found)
    (target,) = found.routes["chat"].targets()
    opened(pool, found)
    probe = by_hand.lease_probe(pool, target, 20.0)
    assert probe is not None
    assert probe.is_probe
    assert by_hand.lease_probe(pool, target, 20.0) is None, "one at a time"
    probe.finish(SUCCESS)
    assert isinstance(standing_of(pool).breaker, Closed)
    assert (standing_of(pool).stats.answers, standing_of(pool).stats.answered_at) == (0, clock.now)
    by_hand.isolate(pool, target.identity)
    shown = by_hand.lease_probe(pool, target, 20.0)
    assert shown is not None
    shown.finish(SUCCESS)
    assert isinstance(standing_of(pool).breaker, Isolated)
    assert standing_of(pool).in_flight == 0


def test_what_was_heard_is_noted() -> None:
    found = table(ONE)
    pool, clock = pool_with(found)
    stats = standing_of(pool).stats
    clock.now = 1.0
    lease(pool, found).finish(FAILED, "refused: no")
    assert (stats.is_unreachable, stats.is_silent, stats.heard_at, stats.failed_at) == (True, False, None, 1.0)
    clock.now = 2.0
    lease(pool, found).finish(judge_fault("stalled", is_committed=True))
    assert (stats.is_unreachable, stats.is_silent, stats.heard_at) == (False, True, None)
    clock.now = 3.0
    lease(pool, found).finish(judge_status(401, None, ""))
    assert (standing_of(pool).is_refused, stats.heard_at, stats.failures) == (True, 3.0, 2)
    clock.now = 4.0
    lease(pool, found).finish(CLIENT_LEFT)
    assert (standing_of(pool).is_refused, stats.heard_at) == (True, 3.0), "that says nothing"
    lease(pool, found).finish(SUCCESS, tokens=4)
    assert (standing_of(pool).is_refused, stats.is_silent, stats.answered_at, stats.answers) == (False, False, 4.0, 1)


def test_who_does_not_take_our_key_or_lacks_the_model_comes_last_until_the_next_check() -> None:
    for more, status, until_ in (({}, 401, 30.0), ({}, 404, 30.0), ({"health_check": {"interval_s": 5.0}}, 404, 5.0)):
        found = table({"a": "http://h1:1", "b": "http://h2:1"}, chat=more)
        pool, clock = pool_with(found)
        lease(pool, found).finish(judge_status(status, None, ""))
        assert lease(pool, found).target.name == "b"
        clock.now = until_
        assert lease(pool, found).target.name == "a"


def test_who_has_just_come_back_gets_more_and_more_while_another_can_answer() -> None:
    found = table(
        {"a": "http://h1:1", "b": "http://h2:1"},
        chat={"breaker": {"failure_threshold": 1, "reset_timeout_s": 10.0, "slow_start_s": 80.0}},
    )
    pool, clock = pool_with(found)
    lease(pool, found).finish(FAILED)
    clock.now = 10.0
    lease(pool, found).finish(SUCCESS)
    assert [lease(pool, found).target.name for _ in range(3)] == ["a", "b", "b"]
    clock.now = 20.0
    assert [lease(pool, found).target.name for _ in range(3)] == ["a", "b", "b"], "two at once"
    clock.now = 90.0
    assert [lease(pool, found).target.name for _ in range(3)] == ["a", "a", "a"]


def test_who_has_just_come_back_gets_everything_where_nobody_else_is() -> None:
    found = table(ONE, chat={"breaker": {"failure_threshold": 1, "reset_timeout_s": 10.0}})
    pool, clock = pool_with(found)
    lease(pool, found).finish(FAILED)
    clock.now = 10.0
    lease(pool, found).finish(SUCCESS)
    assert [lease(pool, found).target.name for _ in range(9)] == ["a"] * 9

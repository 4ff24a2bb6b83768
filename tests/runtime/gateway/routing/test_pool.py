"""What survives requests and reloads."""

from __future__ import annotations

import json
from typing import Any

from runtime.gateway.routing.breaker import Closed, Open
from runtime.gateway.routing.budget import LEAST_RETRIES
from runtime.gateway.routing.build import build_table
from runtime.gateway.routing.checks import check_due
from runtime.gateway.routing.outcome import CLIENT_LEFT, SUCCESS, judge_fault, judge_status
from runtime.gateway.routing.pool import Lease, Pool
from runtime.gateway.routing.select import Choice
from runtime.gateway.routing.table import RoutingTable
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

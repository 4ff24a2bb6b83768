"""Where conversations go when replicas keep what they have read."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from runtime.gateway.routing.affinity import COMMON, LEAST_WORTH, MOST_AHEAD, WORTH, Affinity, Prefix, prefix_of
from runtime.gateway.routing.build import build_table
from runtime.gateway.routing.lease import Lease
from runtime.gateway.routing.outcome import LOADING, SUCCESS, judge_fault, judge_status
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.table import EndpointIdentity, RoutingTable
from schemas.stack import Stack
from tests.runtime.gateway.harness import stack_document

A, B, C = (EndpointIdentity("http", name, 80, "", "openai", "m") for name in "abc")
TEXT = "Once upon a time there was a prompt that nobody wanted to read twice. " * 20


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def prefix(*texts: str, **more: Any) -> Prefix:
    roles = ("user", "assistant")
    messages = [message(roles[index % 2], text) for index, text in enumerate(texts)]
    found = prefix_of({"messages": messages, **more})
    assert found is not None
    return found


def test_the_next_turn_begins_with_the_last_one() -> None:
    first, second = prefix(TEXT), prefix(TEXT, "Well.", "And then?")
    assert second.blocks[: len(first.blocks)] == first.blocks
    assert second.sizes[-1] == len(TEXT) + len("Well.And then?")


def test_a_prompt_that_differs_early_shares_nothing_behind_that() -> None:
    one, other = prefix("a", TEXT, TEXT), prefix("b", TEXT, TEXT)
    assert not set(one.blocks) & set(other.blocks)
    assert not set(prefix(TEXT).blocks) & set(prefix(TEXT, tools=[{"type": "function"}]).blocks)
    assert prefix_of({"messages": [message("user", TEXT)]}) != prefix_of({"messages": [message("system", TEXT)]})


def test_long_texts_are_shared_up_to_where_they_differ() -> None:
    document = "x" * 10_000
    one, other = prefix(document + "What is it?"), prefix(document + "Who is it?")
    assert one.blocks[:2] == other.blocks[:2]
    assert one.blocks[2] != other.blocks[2]


def test_a_prompt_of_any_shape_has_blocks_and_not_too_many() -> None:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "hi"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert prefix_of({"messages": [{"role": "user", "content": parts}, call]}) is not None
    assert prefix_of({"prompt": TEXT}) is not None
    assert prefix_of({"prompt": [1, 2, 3]}) is None
    long = prefix_of({"prompt": "y" * 8_000_000})
    assert long is not None
    assert len(long.blocks) <= 256


def test_who_was_sent_a_prompt_holds_it() -> None:
    affinity = Affinity()
    affinity.sent(prefix(TEXT), A)
    assert affinity.known(prefix(TEXT, "yes", "more"), (A, B)) == {A: len(TEXT)}
    assert affinity.known(prefix("other" + TEXT), (A, B)) == {}
    affinity.sent(prefix(TEXT, "yes", "more"), B)
    assert affinity.known(prefix(TEXT, "yes", "more", "ok", "go"), (A, B)) == {
        A: len(TEXT),
        B: len(TEXT) + len("yesmore"),
    }


def test_a_prefix_is_worth_so_much_and_no_more() -> None:
    affinity = Affinity()
    for text in ("z" * (LEAST_WORTH - 1), "y" * WORTH, "x" * 100_000):
        affinity.sent(prefix(text), A)
    assert affinity.allowances(prefix("z" * (LEAST_WORTH - 1), "a", "b"), (A, B)) == {}
    assert affinity.allowances(prefix("y" * WORTH, "a", "b"), (A, B)) == {A: 1.0}
    assert affinity.allowances(prefix("x" * 100_000, "a", "b"), (A, B)) == {A: MOST_AHEAD}


def test_what_everybodys_prompts_begin_with_draws_nobody() -> None:
    affinity = Affinity()
    for number in range(COMMON):
        affinity.sent(prefix(TEXT, "Hello.", f"question {number}"), A)
    assert affinity.known(prefix(TEXT, "Hello.", "a new question"), (A, B)) == {}
    # The conversation of one of them is still its own.
    own = prefix(TEXT, "Hello.", "question 3", "answer", "and?")
    assert affinity.known(own, (A, B)) == {A: len("question 3")}


def test_an_endpoint_that_lost_its_cache_holds_nothing() -> None:
    affinity = Affinity()
    affinity.sent(prefix(TEXT), A)
    affinity.lost(A)
    assert affinity.known(prefix(TEXT), (A,)) == {}
    affinity.sent(prefix("new " + TEXT), A)
    assert affinity.known(prefix(TEXT), (A,)) == {}, "what it has read since is another matter"
    affinity.keep_only(lambda identity: False)
    assert affinity.known(prefix("new " + TEXT), (A,)) == {}


def test_a_cache_that_never_holds_anything_draws_nobody_until_it_does() -> None:
    affinity = Affinity()
    affinity.sent(prefix(TEXT), A)
    for _ in range(20):
        affinity.reported(A, 0)
    assert affinity.allowances(prefix(TEXT), (A,)) == {}
    for _ in range(3):
        affinity.reported(A, 100)
    assert affinity.allowances(prefix(TEXT), (A,)) != {}
    assert (affinity.found, affinity.gone) == (3, 20)


def test_memory_is_bounded_and_the_latest_is_kept() -> None:
    affinity = Affinity(most_blocks=100)
    for number in range(1000):
        affinity.sent(prefix(f"{number}" + TEXT, "a", "b"), A)
    assert len(affinity) <= 100
    assert affinity.known(prefix("999" + TEXT, "a", "b"), (A,)) != {}
    assert affinity.known(prefix("0" + TEXT, "a", "b"), (A,)) == {}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def replicas(**chat: Any) -> tuple[Pool, RoutingTable]:
    endpoints = {name: {"helper": name, "model": f"model-{name}", "priority": 1} for name in ("a", "b")}
    document = stack_document({"a": "http://h1:1", "b": "http://h2:1"}, chat={"endpoints": endpoints, **chat})
    table = build_table(Stack.model_validate(document, strict=False), None, environ={}, worker_token=None)
    pool = Pool(Clock(), lambda: 0.0)
    pool.adopt(table)
    return pool, table


def ask(pool: Pool, table: RoutingTable, found: Prefix) -> Lease:
    taken = pool.lease(table.routes["chat"], (), prefix=found)
    assert isinstance(taken, Lease)
    return taken


def turns(number: int, count: int) -> Prefix:
    """Return a conversation's prompt at one of its turns; all of them begin with the same system prompt."""
    messages = [message("system", TEXT)]
    for turn in range(count):
        messages.append(message("user", f"conversation {number}, turn {turn}: {TEXT[:300]}"))
        messages.append(message("assistant", f"answer {number}.{turn}: {TEXT[:300]}"))
    found = prefix_of({"messages": messages[:-1]})
    assert found is not None
    return found


def test_conversations_return_and_a_common_system_prompt_does_not_gather_them() -> None:
    """Two replicas, 40 conversations of 6 turns in any order, up to 4 requests at once."""
    pool, table = replicas()
    drawn = random.Random(5)
    next_turn = dict.fromkeys(range(40), 1)
    homes: dict[int, str] = {}
    running: list[tuple[int, Lease]] = []
    returned, moved, per_replica = 0, 0, Counter[str]()
    while next_turn or running:
        free = [number for number in next_turn if number not in {busy for busy, _ in running}]
        if free and len(running) < 4:
            number = drawn.choice(free)
            lease = ask(pool, table, turns(number, next_turn[number]))
            home = homes.setdefault(number, lease.target.name)
            returned += next_turn[number] > 1 and lease.target.name == home
            moved += lease.target.name != home
            homes[number] = lease.target.name
            per_replica[lease.target.name] += 1
            next_turn[number] += 1
            if next_turn[number] > 6:
                del next_turn[number]
            running.append((number, lease))
        else:
            running.pop(drawn.randrange(len(running)))[1].finish(SUCCESS)
    assert returned + moved == 40 * 5
    assert returned >= 0.8 * 200, f"{returned} of 200 turns came back to their replica"
    assert min(per_replica.values()) >= 0.3 * 240, per_replica


def test_a_replica_that_is_busier_by_more_than_the_prefix_is_worth_is_left() -> None:
    pool, table = replicas()
    first = ask(pool, table, turns(0, 1))
    first.finish(SUCCESS)
    home = first.target.name
    held = []
    while len(held) < 20:
        lease = ask(pool, table, turns(0, 2))
        held.append(lease)
        if lease.target.name != home:
            break
    assert 1 < len(held) <= MOST_AHEAD + 2
    for lease in held:
        lease.finish(SUCCESS)


def test_short_questions_take_turns_though_they_are_asked_again() -> None:
    pool, table = replicas()
    names = []
    for _ in range(10):
        lease = ask(pool, table, prefix("hi"))
        names.append(lease.target.name)
        lease.finish(SUCCESS)
    assert Counter(names) == {"a": 5, "b": 5}


def test_a_replica_that_does_not_run_or_lost_its_model_is_not_returned_to() -> None:
    for verdict in (judge_fault("refused", is_committed=False), judge_status(503, "5", '{"code": "model_loading"')):
        pool, table = replicas()
        first = ask(pool, table, turns(0, 1))
        first.finish(SUCCESS)
        again = ask(pool, table, turns(0, 2))
        assert again.target is first.target
        again.finish(verdict)
        assert pool.affinity.known(turns(0, 2), [first.target.identity]) == {}
    assert verdict.label == LOADING

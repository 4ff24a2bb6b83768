"""What is true of a name that several endpoints serve."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.gateway.facts import names
from runtime.gateway.facts.cards import told
from runtime.gateway.facts.known import UNKNOWN, FactBook, Facts
from runtime.gateway.routing.build import build_table
from runtime.gateway.routing.table import RoutingTable
from schemas.stack import Stack
from tests.runtime.gateway.harness import stack_document

WIDE = Facts(source="ollama", observed_at=5.0, context_length=8192, trained_context_length=131072,
    can=frozenset({"completion", "tools", "vision"}), cannot=frozenset({"thinking"}), quantisation="Q4_K_M",
    is_loaded=True, expires_at=100.0, size_loaded=10, size_vram=9)  # fmt: skip
NARROW = Facts(source="vllm", observed_at=3.0, context_length=4096, can=frozenset({"tools"}), is_loaded=False)


def table_of(document: dict[str, Any]) -> RoutingTable:
    return build_table(Stack.model_validate_json(json.dumps(document)), None, environ={}, worker_token=None)


def replicas(first: Facts, second: Facts, **more: Any) -> tuple[RoutingTable, FactBook]:
    """Return a role of two endpoints in one tier, and what is known of them."""
    document = stack_document({"a": "http://a:1", "b": "http://b:1"}, **more)
    for endpoint in document["roles"]["chat"]["endpoints"].values():
        endpoint["priority"] = 1
    table, book = table_of(document), FactBook()
    for target in table.routes["chat"].targets():
        book.note(target.identity, first if target.name == "a" else second)
    return table, book


def test_a_role_can_only_what_every_endpoint_of_its_first_tier_can() -> None:
    table, book = replicas(WIDE, NARROW)
    found = names.of_route(table.routes["chat"], book)
    assert found.context_length == 4096
    assert found.can == {"completion", "tools"}, "the files say that it completes"
    assert found.is_able("vision") is None, "one of them did not say"
    assert found.is_able("thinking") is False
    assert found.is_able("embedding") is False, "a role for chat is asked for nothing else"
    assert (found.is_loaded, found.observed_at, found.quantisation) == (True, 3.0, None)


def test_what_one_of_them_does_not_say_is_unknown() -> None:
    table, book = replicas(WIDE, UNKNOWN)
    found = names.of_route(table.routes["chat"], book)
    assert (found.context_length, found.observed_at, found.can) == (None, None, {"completion"})


def test_later_tiers_are_not_counted_but_for_what_is_loaded() -> None:
    document = stack_document({"a": "http://a:1", "b": "http://b:1"})
    table, book = table_of(document), FactBook()
    first, second = table.routes["chat"].targets()
    book.note(first.identity, NARROW)
    book.note(second.identity, WIDE)
    found = names.of_route(table.routes["chat"], book)
    assert (found.context_length, found.can, found.is_loaded) == (4096, {"completion", "tools"}, True)


def test_names_are_listed_as_the_models_list_has_them_and_as_far_as_they_may_be_known() -> None:
    table, book = replicas(WIDE, NARROW, aliases={"gpt": ["chat"]})
    assert [named.name for named in names.listed(table, book)] == ["chat", "gpt", "model-a", "model-b"]
    assert [named.name for named in names.listed(table, book, lambda name: name == "gpt")] == ["gpt"]
    hidden = names.find(table, book, "model-b", lambda name: name == "gpt")
    assert hidden is None and names.find(table, book, "nobody") is None
    by_endpoint = names.find(table, book, "b")
    assert by_endpoint is not None and by_endpoint.facts.context_length == 4096
    assert by_endpoint.card.kind == "model"


def test_only_models_that_are_in_memory_are_told_as_loaded_each_once() -> None:
    table, book = replicas(WIDE, NARROW, aliases={"gpt": ["chat"]})
    (held,) = names.loaded(table, book)
    assert (held.name, held.facts.size_loaded, held.facts.size_vram, held.facts.expires_at) == ("model-a", 10, 9, 100.0)
    assert [target.name for target, _ in held.endpoints] == ["a"]
    assert names.loaded(table, book, lambda name: name == "model-b") == []


def test_of_a_model_in_several_memories_the_sizes_are_added_up() -> None:
    document = stack_document({"a": "http://a:1", "b": "http://b:1"})
    document["helpers"]["b"]["models"] = {"model-a": {}}
    document["roles"]["chat"]["endpoints"]["b"]["model"] = "model-a"
    table, book = table_of(document), FactBook()
    for target in table.routes["chat"].targets():
        book.note(target.identity, WIDE)
    (held,) = names.loaded(table, book)
    assert (held.facts.size_loaded, held.facts.size_vram, held.facts.context_length) == (20, 18, 8192)


def test_a_row_of_the_models_list_leaves_out_what_nobody_knows() -> None:
    table, book = replicas(UNKNOWN, UNKNOWN)
    row = told(names.of_route(table.routes["chat"], book))
    assert row == {"capabilities": ["completion"], "lacks": ["embedding", "rerank"]}
    known = told(WIDE)
    assert (known["context_length"], known["max_model_len"], known["loaded"]) == (8192, 8192, True)


@pytest.mark.parametrize(("kind", "able"), [("embedding", "embedding"), ("reranking", "rerank")])
def test_an_encoder_is_never_told_to_chat(kind: Any, able: Any) -> None:
    found = names.together(kind, [Facts(can=frozenset({"completion", "embedding", "tools"}), dimensions=384)])
    assert found.is_able(able) and not found.is_able("completion") and not found.is_able("tools")
    assert told(found).get("dimensions") == (384 if kind == "embedding" else None)

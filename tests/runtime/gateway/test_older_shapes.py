"""The documented `helper_nodes:` as they stand in a file, composed and served before servers like Ollama."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.gateway.routing.breaker import Closed, Open
from schemas.compose import compose
from schemas.stack import Stack
from tests.fakes.encoders import embeds, ranks, vector
from tests.fakes.text_servers import ollama
from tests.fakes.upstream import FakeUpstream, refuses
from tests.runtime.gateway.harness import Conf, LocalGateway
from tests.schemas.test_legacy import DOCUMENTED

HEAD = """\
# @package _global_
stack: lab
nodes: {here: {reach: local}}
gateway: {node: here}
models: {minilm: {source: "path:/m", kind: embedding}}
services: {embed: {model: minilm, nodes: [here]}}
"""
EMBED = {"model": "embedding", "input": ["one", "two"]}
RERANK = {"model": "reranking", "query": "q", "documents": ["a", "ccc", "bb"], "return_documents": True}
NOMIC = ollama("nomic-embed-text-v1.5")
WORKER = {"unit": "embed-0.0@1", "node": "here", "service": "embed", "model": "minilm", "state": "ready"}


class Older:
    """A gateway before two servers like Ollama and a worker of ours, with the documented file."""

    def __init__(self, gateway: LocalGateway, conf: Conf, fakes: Sequence[FakeUpstream]) -> None:
        self.gateway = gateway
        self.first, self.second, self.worker = fakes
        self._conf = conf

    async def write(self, before: str = "", after: str = "") -> None:
        text = DOCUMENTED.replace(before, after) if before else DOCUMENTED
        for host, fake in (("192.168.188.20:11434", self.first), ("192.168.188.21:11434", self.second)):
            text = text.replace(host, f"127.0.0.1:{fake.port}")
        self._conf.stack_path.write_text(HEAD + text)
        await self.gateway.reload()

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        async with self.gateway.client() as client:
            return await client.post(path, json=body)

    @staticmethod
    def asked(fake: FakeUpstream) -> list[Any]:
        """Return what clients asked a server, without the gateway's own checks."""
        return [seen for seen in fake.seen if "x-orchestrate-probe" not in seen.headers]

    def breaker(self, model: str) -> Any:
        standings = self.gateway.gateway.services.pool.standings
        return next(standing for identity, standing in standings.items() if identity.model == model).breaker


class _Composed(LocalGateway):
    """A gateway that composes real files."""

    def compose(self, conf: Path, stack: str, overrides: Sequence[str]) -> Stack:
        return compose(conf / "conf", stack, overrides).stack


@pytest.fixture
async def older(tmp_path: Path) -> AsyncIterator[Older]:
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(FakeUpstream(behave)) for behave in (NOMIC, NOMIC, embeds(4))]
        conf, gateway = Conf(tmp_path), _Composed({})
        older = Older(gateway, conf, fakes)
        conf.stack_path.write_text(HEAD + DOCUMENTED)
        await gateway.start(tmp_path)
        stack.push_async_callback(gateway.stop)
        await older.write()
        await gateway.publish({**WORKER, "url": older.worker.url})
        yield older


async def test_vectors_come_from_the_helper_and_where_it_is_lost_from_our_own_worker(older: Older) -> None:
    answer = await older.post("/v1/embeddings", EMBED)
    assert (answer.status_code, answer.headers["x-orchestrate-endpoint"]) == (200, "127.0.0.1")
    assert [item["embedding"] for item in answer.json()["data"]] == [vector("one", 4), vector("two", 4)]
    (seen,) = older.asked(older.first)
    assert seen.path == "/v1/embeddings"
    assert seen.document == {**EMBED, "model": "nomic-embed-text-v1.5"}
    older.first.behave = refuses(500)
    for _ in range(3):
        answer = await older.post("/v1/embeddings", EMBED)
        assert (answer.status_code, answer.headers["x-orchestrate-fallback"]) == (200, "embed")
        assert answer.headers["x-orchestrate-endpoint"] == "embed"
    assert isinstance(older.breaker("nomic-embed-text-v1.5"), Open)
    assert older.asked(older.worker)[-1].headers["authorization"] == "Bearer worker-token"


async def test_an_ollama_that_cannot_rank_leaves_the_documents_in_their_order(older: Older) -> None:
    answer = await older.post("/v1/rerank", RERANK)
    assert (answer.status_code, answer.headers["x-orchestrate-fallback"]) == (200, "skip")
    assert [(each["index"], each["document"]["text"], each["ranked"]) for each in answer.json()["results"]] == [
        (0, "a", False), (1, "ccc", False), (2, "bb", False),
    ]  # fmt: skip
    assert {seen.path for seen in (*older.first.seen, *older.second.seen)} == {"/v1/rerank"}


async def test_servers_that_rank_are_asked_by_priority(older: Older) -> None:
    older.first.behave = older.second.behave = ranks()
    for _ in range(3):
        answer = await older.post("/v1/rerank", RERANK)
        assert [each["index"] for each in answer.json()["results"]] == [1, 2, 0]
    assert (len(older.asked(older.first)), len(older.asked(older.second))) == (3, 0)
    older.first.behave = refuses(500)
    assert (await older.post("/v1/rerank", RERANK)).status_code == 200
    (seen,) = older.asked(older.second)
    assert seen.document["model"] == "jina-reranker-v3"


async def test_timeouts_checks_and_breakers_are_those_of_the_file(older: Older) -> None:
    table = older.gateway.gateway.services.live.table
    assert table is not None
    (vectors,), (first, second) = (tuple(table.routes[name].targets()) for name in ("embedding", "reranking"))
    assert [target.timeouts.first_token_s for target in (vectors, first, second)] == [10, 10, 10]
    assert [(target.priority, target.check_s) for target in (first, second)] == [(1, 30), (2, 30)]
    assert vectors.check_s is None
    assert (first.breaker.failure_threshold, first.breaker.reset_timeout_s) == (3, 60)
    assert {card.id: card.task for card in table.cards}["reranking"] == "reranking"


async def test_the_older_shape_is_reloaded_like_any_other(older: Older) -> None:
    older.first.behave = refuses(500)
    for _ in range(3):
        await older.post("/v1/embeddings", EMBED)
    assert isinstance(older.breaker("nomic-embed-text-v1.5"), Open)
    await older.write("timeout_sec: 10, fallback", "timeout_sec: 20, fallback")
    assert isinstance(older.breaker("nomic-embed-text-v1.5"), Open)  # the same endpoint
    older.first.behave = ollama("mxbai-embed-large")
    await older.write("nomic-embed-text-v1.5", "mxbai-embed-large")
    assert isinstance(older.breaker("mxbai-embed-large"), Closed)  # another one
    assert (await older.post("/v1/embeddings", EMBED)).headers["x-orchestrate-endpoint"] == "127.0.0.1"
    await older.write('"skip"', '"skipp"')
    problem = (await older.gateway.config())["problems"][0]
    assert problem["key"] == "helper_nodes.reranking.fallback"
    assert (await older.post("/v1/embeddings", EMBED)).status_code == 200  # by the last good table

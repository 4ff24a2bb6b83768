"""Asking a worker for the memory of its model: what is known of one that gives no answer."""

from __future__ import annotations

import sys

import httpx

from orchestrator.transport.base import NodeUnreachableError
from orchestrator.transport.http import NodeHttpTransport
from orchestrator.transport.local import LocalTransport
from orchestrator.unloading import unload_model
from tests.fakes.upstream import FakeUpstream, refuses, resets

NOBODY = "http://127.0.0.1:1"


async def python() -> str:
    return sys.executable


async def unreachable() -> str:
    raise NodeUnreachableError("box", "no route to host")


async def test_a_worker_that_is_gone_holds_nothing():
    for transport in (None, NodeHttpTransport(LocalTransport("here"), python)):
        async with httpx.AsyncClient(transport=transport) as http:
            assert await unload_model(http, NOBODY, None) is None


async def test_a_worker_that_gives_no_answer_may_hold_its_model():
    async with FakeUpstream(resets) as worker:
        for transport in (None, NodeHttpTransport(LocalTransport("here"), python)):
            async with httpx.AsyncClient(transport=transport) as http:
                assert "gave no answer" in (await unload_model(http, worker.url, None) or "")


async def test_of_a_node_that_cannot_be_asked_nothing_is_known():
    async with httpx.AsyncClient(transport=NodeHttpTransport(LocalTransport("box"), unreachable)) as http:
        assert await unload_model(http, NOBODY, None) == "its node could not be asked (box: no route to host)"


async def test_a_worker_that_does_not_know_the_question_keeps_its_model():
    async with FakeUpstream(refuses(404)) as worker, httpx.AsyncClient() as http:
        assert "answered 404" in (await unload_model(http, worker.url, None) or "")

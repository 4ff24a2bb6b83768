"""Managed engines asked whether they are ready, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engines.probe import is_alive, probe
from orchestrator.readiness import client
from schemas.unit import EngineSpec, ModelSpec
from tests.fakes.upstream import FakeUpstream, answers

TOKEN = "canary-token"


@pytest.mark.parametrize(
    ("engine", "sent"),
    [
        ("llama-server", f"Bearer {TOKEN}"),
        ("vllm", f"Bearer {TOKEN}"),
        ("command", f"Bearer {TOKEN}"),
        ("mlx-lm-server", None),
    ],
)
async def test_only_an_engine_that_was_started_with_our_key_is_told_it(engine: Any, sent: str | None) -> None:
    args = {"command": "serve {port}"} if engine == "command" else {}
    model = ModelSpec(name="tiny", source="path:/srv/tiny")
    spec = EngineSpec(node="here", service="chat", replica=0, engine=engine, model=model, max_batch=4, args=args)
    async with FakeUpstream(answers()) as fake, client() as http:
        await is_alive(http, spec, fake.url, TOKEN)
        await probe(http, spec, fake.url, TOKEN)
    assert len(fake.seen) >= 2
    assert {seen.headers.get("authorization") for seen in fake.seen} == {sent}

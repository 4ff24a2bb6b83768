"""Prompts that nobody can read go where they can be read, without a word from those who would cut them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.gateway.facts.known import Facts
from runtime.gateway.facts.lengths import least_tokens
from tests.fakes.upstream import FakeUpstream
from tests.runtime.gateway.harness import local_gateway, stack_document

WORDS = "one two  three\nfour"


@pytest.mark.parametrize(
    ("document", "least"),
    [
        ({"messages": [{"content": WORDS}, {"content": [{"type": "text", "text": WORDS}, {"type": "image_url"}]}]}, 8),
        ({"messages": [{"content": None}, {"role": "user"}, "nonsense", {"content": 5}]}, 0),
        ({"prompt": WORDS}, 4),
        ({"prompt": [1, 2, 3]}, 3),
        ({"prompt": [WORDS, WORDS]}, 0),
        ({"messages": [{"content": "文字文字文字"}]}, 1),
        ({}, 0),
    ],
)
def test_a_prompt_has_a_token_for_every_word_at_least(document: dict[str, Any], least: int) -> None:
    assert least_tokens(document) == least


async def test_a_prompt_that_is_certainly_too_long_is_not_sent_to_who_would_cut_it(tmp_path: Path) -> None:
    async with FakeUpstream() as short, FakeUpstream() as long:
        made = stack_document({"a": short.url, "b": long.url}, chat={"context_fallback": "long"})
        endpoint = made["roles"]["chat"]["endpoints"].pop("b")
        made["roles"]["long"] = {"endpoints": {"b": endpoint}}
        async with local_gateway(tmp_path, made) as gateway, gateway.client() as client:
            book, table = gateway.gateway.services.facts, gateway.gateway.services.live.table
            assert table is not None
            (target,) = table.routes["chat"].targets()

            async def answered_by(words: int) -> tuple[str, str | None]:
                messages = [{"role": "user", "content": "word " * words}]
                answer = await client.post("/v1/chat/completions", json={"model": "chat", "messages": messages})
                assert answer.status_code == 200
                return answer.headers["x-orchestrate-endpoint"], answer.headers.get("x-orchestrate-fallback")

            assert await answered_by(500) == ("a", None), "nobody knows how much it reads"
            book.note(target.identity, Facts(source="ollama", observed_at=0.0, context_length=100))
            assert await answered_by(500) == ("b", "long")
            assert await answered_by(100) == ("a", None)
            assert (len(short.seen), len(long.seen)) == (2, 1)

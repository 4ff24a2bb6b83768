"""The shipped stack with the shipped model: what `make run` shows, and what a client reads of it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.e2e


def test_up_answers_and_says_what_to_do_next(real):
    out = real.run("up", "quickstart", "--yes").stdout
    assert "No changes. What runs is what the stack says." in out
    assert "Paris" in out
    assert f"curl {real.url}/v1/chat/completions" in out
    assert "down quickstart" in out


def test_the_openai_sdk_talks_to_it_streamed_and_not(real):
    from openai import OpenAI

    client = OpenAI(base_url=f"{real.url}/v1", api_key="unused", max_retries=0)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    whole = client.chat.completions.create(model="chat", messages=messages, max_tokens=16, temperature=0)
    assert "Paris" in (whole.choices[0].message.content or "")
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(model="chat", messages=messages, max_tokens=16, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == whole.choices[0].message.content
    assert "chat" in [model.id for model in client.models.list()]

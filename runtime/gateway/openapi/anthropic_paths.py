"""Pure: the operations of Anthropic's API."""

from __future__ import annotations

from runtime.gateway.openapi import anthropic
from runtime.gateway.openapi.operations import EVENTS, Answer, relayed

TAG = "Anthropic"
_HELLO = [{"role": "user", "content": "Say hello."}]

OPERATIONS = (
    relayed(
        "/v1/messages",
        "Answer a conversation",
        anthropic.MessagesRequest,
        Answer(
            "The answer: one document, or events from `message_start` to `message_stop`.",
            anthropic.AnthropicMessage,
            EVENTS,
            anthropic.MessageEvent,
            is_relayed=True,
        ),
        tag=TAG,
        example={"model": "chat", "max_tokens": 64, "messages": _HELLO},
    ),
    relayed(
        "/v1/messages/count_tokens",
        "Count the tokens of a conversation",
        anthropic.CountRequest,
        Answer("How many there are.", anthropic.TokenCount, is_relayed=True),
        tag=TAG,
        example={"model": "chat", "messages": _HELLO},
    ),
)

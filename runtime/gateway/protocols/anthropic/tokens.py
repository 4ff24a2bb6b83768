"""Pure: the answer to Anthropic's `POST /v1/messages/count_tokens` (`types/message_tokens_count.py` of its SDK)."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CountTranslation:
    """Says a count of ours in Anthropic's words; an estimate keeps its mark."""

    @property
    def content_type(self) -> str:
        """Return the content type; there are no streams of it."""
        return "application/json"

    def whole(self, raw: bytes) -> bytes:
        """Return the answer for `counting.count_steps`'s."""
        counted = json.loads(raw)
        mark = {"estimated": True} if counted.get("estimated") else {}
        return json.dumps({"input_tokens": counted["count"], **mark}).encode()

    def feed(self, events: bytes) -> bytes:
        """Return what came: nothing of this is ever streamed."""
        return events

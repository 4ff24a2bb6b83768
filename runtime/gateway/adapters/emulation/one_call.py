"""Pure: a stream without the calls behind its first one, for clients that want one call at a time."""

from __future__ import annotations

import json
from typing import Any

from runtime.gateway.sse import event_data, split_events

_MARK = b'"tool_calls"'


class FirstCall:
    """Cuts other calls out of one stream. Text is passed on byte for byte."""

    __slots__ = ("_id", "_index")

    def __init__(self) -> None:
        self._id: str | None = None
        self._index: object = None

    def feed(self, events: bytes) -> bytes:
        """Return whole events without other calls than the first one."""
        if _MARK not in events:
            return events
        return b"".join(self._event(event) if _MARK in event else event for event in split_events(events))

    def _event(self, event: bytes) -> bytes:
        try:
            document = json.loads(event_data(event))
            choices = [self._choice(choice) for choice in document["choices"]]
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            # Whatever it is, there is no call in it that a client could make.
            return event
        if choices == document["choices"]:
            return event
        made = json.dumps({**document, "choices": choices}, ensure_ascii=False, separators=(",", ":"))
        return b"data: " + made.encode(errors="replace") + b"\n\n"

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        delta = choice.get("delta") or {}
        calls = delta.get("tool_calls")
        if not calls:
            return choice
        kept = [call for call in calls if self._is_first(call)]
        if len(kept) == len(calls):
            return choice
        rest = {key: value for key, value in delta.items() if key != "tool_calls"}
        return {**choice, "delta": {**rest, "tool_calls": kept} if kept else rest}

    def _is_first(self, call: dict[str, Any]) -> bool:
        """Tell whether a piece belongs to the first call: the beginning of one has an id, what follows its index."""
        call_id, index = call.get("id"), call.get("index")
        if self._id is None and call_id:
            self._id, self._index = call_id, index
        return call_id == self._id if call_id else index == self._index

"""Pure: the tool calls of an answer, gathered from the pieces in which OpenAI's streams bring them.

Ollama's clients get each call whole, its arguments an object (ollama `api/types.go`, `ToolCall`).
"""

from __future__ import annotations

import json
from typing import Any

from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.bodies import decode


class Calls:
    """Gathers the calls of one answer."""

    __slots__ = ("_calls", "_open")

    def __init__(self) -> None:
        self._calls: list[tuple[str, str, list[str]]] = []
        """Id, name and the pieces of the arguments, in the order of the calls."""
        self._open: dict[int, int] = {}
        """Which call a piece belongs to, by its index."""

    def feed(self, pieces: list[dict[str, Any]]) -> None:
        """Take the `tool_calls` of a delta, or of a whole message."""
        for place, piece in enumerate(pieces):
            index = piece.get("index", place)
            function = piece.get("function") or {}
            known = self._open.get(index)
            call_id = piece.get("id") or ""
            # Some servers number all calls 0: an id of its own begins another one.
            if known is None or (call_id and self._calls[known][0] not in ("", call_id)):
                known = self._open[index] = len(self._calls)
                self._calls.append(("", "", []))
            before, name, arguments = self._calls[known]
            self._calls[known] = (before or call_id, name or function.get("name") or "", arguments)
            arguments.append(_written(function.get("arguments")))

    def take(self, *, is_cut: bool) -> list[dict[str, Any]]:
        """Return the calls that are there, in Ollama's shape, and forget them.

        Of an answer that was cut off (`is_cut`) a call whose arguments are no object is left out; otherwise that
        raises `BadAnswerError`.
        """
        made = []
        for index, (call_id, name, pieces) in enumerate(self._calls):
            written = "".join(pieces)
            try:
                arguments = decode(written) if written.strip() else {}
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict) or not name:
                if is_cut:
                    continue
                raise BadAnswerError("a tool call without a name, or whose arguments are no object")
            function = {"index": index, "name": name, "arguments": arguments}
            made.append({**({"id": call_id} if call_id else {}), "function": function})
        self._calls, self._open = [], {}
        return made


def _written(arguments: object) -> str:
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)

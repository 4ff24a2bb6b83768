"""Pure: what a model wrote between its tool-call marks becomes calls, by mlx-lm's parser of its family."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.worker.tools.asked import Tool

Parser = Callable[[str, Sequence[Mapping[str, Any]]], Any]
"""One of mlx-lm's: takes the text between the marks and the tools; returns a call, or a list of calls, as dicts."""

PYTHON_TAG = "<|python_tag|>"
"""Stands before some of Llama 3's calls."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the model calls. `arguments` is JSON of an object; `id` is the model's own, where its family has any."""

    name: str
    arguments: str
    id: str | None = None


def read_calls(parser: Parser, text: str, tools: Sequence[Tool]) -> list[Call]:
    """Return the calls in `text`; none where it does not parse, since the text is shown then.

    A call of a function that is not among `tools` is one too: clients answer it with an error, and the model mends it.
    """
    try:
        parsed = parser(text, [tool.as_json() for tool in tools])
        found = parsed if isinstance(parsed, list) else [parsed]
        calls = [_call(item) for item in found]
    except Exception:  # noqa: BLE001 - parsers raise what they like about a text that a model made up
        return []
    names = {tool.name for tool in tools}
    if any(call.name == "unknown" and call.name not in names for call in calls):
        return []  # what mlx-lm's GLM parser makes of any text at all
    return calls


def _call(item: Any) -> Call:
    name, arguments = item["name"], item.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise TypeError("not a call")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()
    own_id = item.get("id")
    return Call(name, text, own_id if isinstance(own_id, str) and own_id else None)


def parse_bare_json(text: str, _: object = None) -> list[dict[str, Any]]:
    """Parse Llama 3's calls: `{"name": ..., "parameters": {...}}`, several of them with `;` between.

    Raises ValueError and what wrong shapes raise.
    """
    decoder = json.JSONDecoder()
    rest = text.strip().removeprefix(PYTHON_TAG).strip()
    calls = []
    while rest:
        value, end = decoder.raw_decode(rest)
        arguments = value["parameters"] if "parameters" in value else value["arguments"]
        calls.append({"name": value["name"], "arguments": arguments})
        rest = rest[end:].lstrip(" \n;")
    if not calls:
        raise ValueError("no call")
    return calls


def parse_json(text: str, _: object = None) -> Any:
    """Parse the call that a model was told to write; raises ValueError."""
    return json.loads(text)

"""I/O: what the programs of Python clients have in common: scenarios by feature, one line of JSON for each outcome.

Such a program runs in its client's own environment, so this needs nothing but Python. It is called with one JSON
object, the setting; the lines are `{"feature": ..., "outcome": ..., "detail": ...}`, where the outcome is `works`,
`refused` (with the parameter that was refused by its name), `absent` (the backend makes no such thing) or `failed`.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather of a city.", "parameters": PARAMETERS},
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "enum": ["Ada", "Bo"]}, "age": {"type": "integer", "enum": [7, 8]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Setting:
    """Where a program asks, and for what. A name is empty where the backend offers no such model."""

    url: str
    """The gateway's, without a path."""
    model: str
    answers_as: str
    """What the backend itself calls it, as its answers do."""
    embedding: str
    dimensions: int
    """Of the vectors of `embedding`."""
    reranking: str
    context: int
    """Tokens that `model` can read; 0 where a longer prompt is no test for it."""
    keyed_url: str
    """Of a gateway that asks for keys, with the model `chat`."""
    key: str


@dataclass(frozen=True)
class Scenario:
    """What a client does for one feature."""

    feature: str
    run: Callable[[Setting], None]
    may_refuse: Collection[str]
    """Parameters whose refusal by name is as good an answer."""
    needs: str
    """A field of the setting without which there is nothing to try."""


SCENARIOS: list[Scenario] = []


def scenario(
    feature: str, may_refuse: Collection[str] = (), needs: str = "model"
) -> Callable[[Callable[[Setting], None]], Callable[[Setting], None]]:
    """Add a function to the program as the scenario of a feature."""

    def add(run: Callable[[Setting], None]) -> Callable[[Setting], None]:
        SCENARIOS.append(Scenario(feature, run, may_refuse, needs))
        return run

    return add


def main() -> None:
    """Run all scenarios in their order and print their outcomes."""
    setting = Setting(**json.loads(sys.argv[1]))
    for each in SCENARIOS:
        outcome, detail = _run(each, setting)
        print(json.dumps({"feature": each.feature, "outcome": outcome, "detail": detail}), flush=True)


def _run(each: Scenario, setting: Setting) -> tuple[str, str]:
    if not getattr(setting, each.needs):
        return "absent", ""
    try:
        each.run(setting)
    except Exception as error:
        refused = _refused_parameter(error)
        if refused is not None and refused in each.may_refuse:
            return "refused", refused
        return "failed", traceback.format_exc(limit=-4)[-2500:]
    return "works", ""


def _refused_parameter(error: Exception) -> str | None:
    """Return the parameter that a 400 names; the SDKs' exceptions carry status and body."""
    if getattr(error, "status_code", None) != 400:
        return None
    body: Any = getattr(error, "body", None)
    param = body.get("param") if isinstance(body, dict) else None
    return param if isinstance(param, str) else None

"""Pure: answers that must have a form: how a model is asked for it, and whether what it says has it.

A form is a JSON value that a schema allows, or a call of one of some functions written as such a value. Models wrap
JSON in fences and words; the value is taken out of them, and nothing else is forgiven.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(r"```[A-Za-z]*+\s*+(.*?)```", re.DOTALL)
"""It gives nothing back: a fence that is never closed would cost quadratic time."""
_OPENING = re.compile(r"[{\[]")


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


class BadSchemaError(Exception):
    """A schema that cannot be checked; says why."""


@dataclass(frozen=True, slots=True)
class Form:
    """What the text of an answer must be."""

    param: str
    """The parameter of the request that asks for it."""
    schema: Mapping[str, Any]
    instruction: str
    """What the model is told; empty where its engine holds it to the schema."""
    calls: Mapping[str, Mapping[str, Any]] | None = None
    """Of a call, `{"name": ..., "arguments": ...}`, which clients get as one: the schema by the function's name."""
    is_optional: bool = False
    """Whether any other answer is as good as a call."""

    @property
    def is_call(self) -> bool:
        """Whether it is a call."""
        return self.calls is not None

    def check(self) -> None:
        """Raise `BadSchemaError` where it cannot be told whether an answer has it. Takes milliseconds."""
        # jsonschema and what it needs take longer to import than most of the gateway: few requests need them.
        from runtime.gateway.adapters.emulation.schema import check_schema

        check_schema(self.schema if self.calls is None else {"anyOf": list(self.calls.values())})

    def names(self, value: Any) -> bool:
        """Tell whether a value is meant as a call."""
        name = value.get("name") if isinstance(value, dict) else None
        return isinstance(name, str) and name in (self.calls or {}) and "arguments" in value

    def faults(self, value: Any) -> tuple[str, ...]:
        """Say what is wrong with a value; raises `BadSchemaError`."""
        from runtime.gateway.adapters.emulation.schema import faults

        if self.calls is None:
            return faults(self.schema, value)
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self.calls:
            return (f"it must be an object whose name is one of: {', '.join(self.calls)}",)
        return faults(self.calls[name], value)


@dataclass(frozen=True, slots=True)
class Unfit:
    """An answer that has not the form."""

    text: str
    """What the model said."""
    faults: tuple[str, ...]
    is_cut: bool = False
    """Whether it was cut off at the most tokens that it may have: asking again would not help."""


def value_of(schema: Mapping[str, Any], param: str = "response_format") -> Form:
    """Return the form of a JSON value."""
    if schema == {"type": "object"}:
        wanted = "one JSON object"
    else:
        wanted = f"one JSON value that this JSON Schema allows:\n{_json(schema)}\n"
    return Form(param, schema, f"Answer with {wanted} and with nothing else: no other words, no code fence.")


def call_of(functions: Sequence[Mapping[str, Any]]) -> Form:
    """Return the form of a call of one of some functions, which are as `tools` has them, and which it is told of."""
    described = "\n".join(_json(function) for function in functions)
    shape = (
        ' Answer with one JSON object {"name": the name of the function, "arguments": {its arguments}} and with '
        "nothing else: no other words, no code fence."
    )
    calls = {function["name"]: _call(function, "#") for function in functions}
    if len(functions) == 1:
        which, schema = "this function", calls[functions[0]["name"]]
    else:
        which = "one of these functions"
        schema = {"anyOf": [_call(function, f"#/anyOf/{index}") for index, function in enumerate(functions)]}
    return Form("tool_choice", schema, f"Call {which} now.{shape}\n{described}", calls)


def maybe_call_of(functions: Sequence[Mapping[str, Any]]) -> Form:
    """Return the form of an answer that may be a call of one of some functions."""
    described = "\n".join(_json(function) for function in functions)
    told = (
        "You may call these functions. To call one, answer with one JSON object "
        '{"name": the name of the function, "arguments": {its arguments}} and with nothing else. Without need for a '
        f"call answer as usual.\n{described}"
    )
    calls = {function["name"]: _call(function, "#") for function in functions}
    return Form("tools", {}, told, calls, is_optional=True)


def spoken(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return a conversation whose calls, and what came of them, are said in words, for templates that know neither."""
    said: list[Mapping[str, Any]] = []
    for message in messages:
        calls = message.get("tool_calls")
        if message.get("role") == "tool":
            name = f" {message['name']}" if isinstance(message.get("name"), str) else ""
            content = message.get("content")
            text = content if isinstance(content, str) else _json(content)
            said.append({"role": "user", "content": f"The function{name} has answered: {text}"})
        elif isinstance(calls, list) and calls:
            written = [_json(_written(call)) for call in calls]
            content = message.get("content")
            before = [content] if isinstance(content, str) and content else []
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            said.append({**kept, "content": "\n".join([*before, *written])})
        else:
            said.append(message)
    return said


def _written(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    function = function if isinstance(function, dict) else {}
    arguments = function.get("arguments")
    found = json_in(arguments) if isinstance(arguments, str) else None
    return {"name": function.get("name"), "arguments": arguments if found is None else found[0]}


def _call(function: Mapping[str, Any], place: str) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object", "properties": {}}
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": [function["name"]]},
            "arguments": _moved(arguments, f"{place}/properties/arguments"),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """Return a schema as a part of another one: what refers to its own top refers to its place there."""
    if isinstance(schema, dict):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/"))
            else _moved(value, place)
            for key, value in schema.items()
        }
    return [_moved(item, place) for item in schema] if isinstance(schema, list) else schema


def told(messages: Sequence[Mapping[str, Any]], instruction: str) -> list[Mapping[str, Any]]:
    """Return a conversation whose system message says what form the answer must have.

    It is put into the one that is there: the templates of some models take one only.
    """
    if not instruction:
        return list(messages)
    first = messages[0]
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": instruction}, *messages]
    content = first.get("content")
    if isinstance(content, list):
        joined: Any = [*content, {"type": "text", "text": f"\n\n{instruction}"}]
    else:
        joined = f"{content}\n\n{instruction}" if content else instruction
    return [{**first, "content": joined}, *messages[1:]]


def asked_again(messages: Sequence[Mapping[str, Any]], unfit: Unfit) -> list[Mapping[str, Any]]:
    """Return a conversation in which the model is told what was wrong with its answer."""
    wrong = "\n".join(f"- {fault}" for fault in unfit.faults)
    again = f"That answer cannot be used:\n{wrong}\nAnswer again, with the JSON only."
    return [*messages, {"role": "assistant", "content": unfit.text or "(nothing)"}, {"role": "user", "content": again}]


def shaped(form: Form, choice: Mapping[str, Any], seed: str) -> dict[str, Any] | Unfit:
    """Return a choice of an answer with its form taken out of what the model said, or what is wrong with it.

    `seed` is what ids of calls are made of. Raises `BadSchemaError`.
    """
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    given = message.get("content")
    text = given if isinstance(given, str) else ""
    is_cut = choice.get("finish_reason") == "length"
    if message.get("tool_calls"):
        # Where tools may be called as well as answers given, a call is as good as an answer.
        return dict(choice) if not form.is_call else _called(form, choice, message)
    found = json_in(text)
    if form.is_optional and (found is None or not form.names(found[0])):
        return dict(choice)
    if found is None:
        if is_cut and not form.is_call:
            # OpenAI gives such a one too: clients look at the reason.
            return dict(choice)
        wrong = "it was cut off by the limit of tokens" if is_cut else "it is no JSON"
        return Unfit(text, (wrong,), is_cut)
    value, written = found
    if faulty := form.faults(value):
        return Unfit(text, faulty, is_cut)
    if not form.is_call:
        return {**choice, "message": {**message, "content": written}}
    arguments = _json(value["arguments"])
    call_id = hashlib.sha256(f"{seed}/{value['name']}/{arguments}".encode(errors="replace")).hexdigest()[:24]
    call = {
        "id": f"call_{call_id}",
        "type": "function",
        "function": {"name": value["name"], "arguments": arguments},
    }
    return {**choice, "message": {**message, "content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}


def _called(form: Form, choice: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any] | Unfit:
    """Check calls that the engine has read out of the answer by itself."""
    for call in message["tool_calls"]:
        function = call.get("function") if isinstance(call, dict) else None
        function = function if isinstance(function, dict) else {}
        found = json_in(str(function.get("arguments") or "{}"))
        value = {"name": function.get("name"), "arguments": None if found is None else found[0]}
        if faulty := form.faults(value):
            return Unfit(_json(value), faulty, choice.get("finish_reason") == "length")
    return {**choice, "finish_reason": "tool_calls"}


def json_in(text: str) -> tuple[Any, str] | None:
    """Return the JSON value in what a model said, and its text; None where there is none."""
    thought = _THOUGHT.match(text)
    said = text[thought.end() :].strip() if thought else text.strip()
    fenced = _FENCED.search(said)
    for candidate in (said, fenced[1].strip() if fenced else ""):
        if candidate and (found := _whole(candidate)) is not None:
            return found
    opening = _OPENING.search(said)
    if opening is None:
        return None
    try:
        value, end = _decoder.raw_decode(said, opening.start())
    except (ValueError, RecursionError):
        return None
    return value, said[opening.start() : end]


def _whole(text: str) -> tuple[Any, str] | None:
    try:
        value, end = _decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return (value, text) if end == len(text) else None


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

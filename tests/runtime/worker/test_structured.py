"""Answers that obey a schema, and calls that are asked for, from a worker whose model is random."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.runtime.worker.bodies import USER
from tests.runtime.worker.group import Group
from tests.runtime.worker.process import Worker

WORDS = {"enum": ["red", "green", "blue"]}
SHORT = {"type": "string", "maxLength": 8}
CLOSED = {"additionalProperties": False}


def record(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, **CLOSED, **more}


# Bounded, so that a random model reaches the end of each of them.
SCHEMAS: dict[str, dict[str, Any]] = {
    "enum": WORDS,
    "const": {"const": {"a": [1, None, "x"]}},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "integer-bounds": {"type": "integer", "minimum": -5, "maximum": 120},
    "integer-exclusive": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    "number-bounds": {"type": "number", "minimum": 0.25, "maximum": 0.75},
    "multiple": {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 30},
    "string-length": {"type": "string", "minLength": 3, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "date-time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "types": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    "array-lengths": {"type": "array", "items": WORDS, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [WORDS, {"type": "boolean"}], "items": False, "minItems": 2},
    "object": record({"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}}),
    "optional": record({"a": WORDS, "b": {"type": "boolean"}, "c": WORDS}, "b"),
    "nested": record({"a": record({"b": record({"c": WORDS})})}),
    "anyOf": {"anyOf": [WORDS, record({"kind": {"const": "x"}, "size": {"type": "boolean"}})]},
    "oneOf": {"oneOf": [record({"k": {"const": "a"}}), record({"k": {"const": "b"}, "n": WORDS})]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 1}, {"maximum": 5}]},
    "defs": record({"a": {"$ref": "#/$defs/word"}}, **{"$defs": {"word": WORDS}}),
    "recursive": {
        "$ref": "#/$defs/node",
        "$defs": {"node": record({"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, WORDS]}})},
    },
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "pattern-properties": {"type": "object", "patternProperties": {"^x_[a-c]$": WORDS}, "maxProperties": 2, **CLOSED},
    "described": {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "d", **WORDS},
}  # fmt: skip

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks at a colour.",
        "parameters": record({"colour": WORDS, "times": {"type": "integer", "minimum": 1, "maximum": 9}}, "times"),
    },
}
TELL = {"type": "function", "function": {"name": "tell", "parameters": record({"yes": {"type": "boolean"}})}}
TOOLS = {LOOK["function"]["name"]: LOOK, TELL["function"]["name"]: TELL}  # type: ignore[index]


def wanted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def ask(worker: Worker, **body: Any) -> dict[str, Any]:
    response = worker.chat(**{"messages": USER, "max_tokens": 300, "temperature": 1, **body})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return dict(choice)


def check_calls(choice: dict[str, Any]) -> list[str]:
    """Assert that an answer is calls that their schemas allow; return their names."""
    assert choice["finish_reason"] == "tool_calls", choice
    assert choice["message"]["content"] is None
    for call in choice["message"]["tool_calls"]:
        schema: Any = TOOLS[call["function"]["name"]]["function"]
        Draft202012Validator(schema["parameters"]).validate(json.loads(call["function"]["arguments"]))
        assert call["type"] == "function"
    ids = [call["id"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == len(ids)
    return [call["function"]["name"] for call in choice["message"]["tool_calls"]]


@pytest.mark.slow
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_every_answer_of_a_random_model_obeys_its_schema(worker, schema):
    ended = 0
    for seed in range(4):
        choice = ask(worker, response_format=wanted(schema), seed=seed)
        if choice["finish_reason"] == "length":
            continue  # of a schema that bounds nothing, such as a recursive one
        ended += 1
        assert choice["finish_reason"] == "stop"
        Draft202012Validator(schema).validate(json.loads(choice["message"]["content"]))
    assert ended


def test_an_answer_obeys_its_schema_and_ends_with_it(worker):
    choice = ask(worker, response_format=wanted(SCHEMAS["object"]), seed=1)
    assert choice["finish_reason"] == "stop"
    Draft202012Validator(SCHEMAS["object"]).validate(json.loads(choice["message"]["content"]))


def test_a_json_object_is_one(worker):
    for seed in range(3):
        choice = ask(worker, response_format={"type": "json_object"}, seed=seed, logit_bias={})
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_a_text_format_constrains_nothing(worker):
    assert ask(worker, response_format={"type": "text"}, max_tokens=3, temperature=0)["finish_reason"] == "length"


def test_greedy_and_drawn_and_free_requests_share_a_batch(worker):
    from concurrent.futures import ThreadPoolExecutor

    bodies: list[dict[str, Any]] = [
        {"response_format": wanted(SCHEMAS["array-lengths"]), "temperature": 0},
        {"response_format": wanted(SCHEMAS["object"]), "seed": 3},
        {"max_tokens": 40, "temperature": 0.1},  # hotter, it would draw the end of its answer now and then
        {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False, "seed": 5},
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        array, record_, free, call = pool.map(lambda body: ask(worker, **body), bodies)
    Draft202012Validator(SCHEMAS["array-lengths"]).validate(json.loads(array["message"]["content"]))
    Draft202012Validator(SCHEMAS["object"]).validate(json.loads(record_["message"]["content"]))
    assert free["finish_reason"] == "length"
    assert check_calls(call) == ["look"]
    assert ask(worker, **bodies[0]) == array


def test_every_choice_of_a_request_obeys(worker):
    response = worker.chat(messages=USER, n=3, seed=4, max_tokens=200, response_format=wanted(SCHEMAS["object"]))
    assert response.status_code == 200, response.text
    for choice in response.json()["choices"]:
        Draft202012Validator(SCHEMAS["object"]).validate(json.loads(choice["message"]["content"]))


def test_a_completion_obeys_too(worker):
    text = worker.text_of(prompt="a colour:", max_tokens=40, response_format=wanted(WORDS))
    assert json.loads(text) in WORDS["enum"]


@pytest.mark.parametrize("seed", range(3))
def test_required_calls_are_made(worker, seed):
    # Two tools, none, one or several calls: the model is random, so what it calls is its own affair.
    body = {"tools": [LOOK, TELL], "seed": seed, "max_tokens": 400}
    names = check_calls(ask(worker, **body, tool_choice="required", parallel_tool_calls=False))
    assert len(names) == 1
    named = {"type": "function", "function": {"name": "tell"}}
    assert set(check_calls(ask(worker, **body, tool_choice=named, parallel_tool_calls=False))) == {"tell"}


def test_a_format_with_tools_gives_either(worker):
    seen = set()
    for seed in range(6):
        choice = ask(
            worker, tools=[TELL], response_format=wanted(WORDS), seed=seed, max_tokens=400, parallel_tool_calls=False
        )
        if choice["finish_reason"] == "tool_calls":
            check_calls(choice)
            seen.add("call")
        else:
            assert json.loads(choice["message"]["content"]) in WORDS["enum"]
            seen.add("answer")
    assert seen


def events_of(worker: Worker, **body: Any) -> Iterator[dict[str, Any]]:
    with worker.http.stream(
        "POST", "/v1/chat/completions", json={"messages": USER, "stream": True, **body}
    ) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    yield from (json.loads(line) for line in lines[:-1])


def test_a_call_streams_as_deltas(worker):
    body = {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 300, "seed": 2}
    choices = [event["choices"][0] for event in events_of(worker, **body)]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    call, *deltas = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert call["index"] == 0
    assert call["type"] == "function"
    assert call["function"] == {"name": "look", "arguments": ""}
    assert len(deltas) > 5
    assert all(delta.keys() == {"index", "function"} and delta["index"] == 0 for delta in deltas)
    arguments = "".join(delta["function"]["arguments"] for delta in deltas)
    Draft202012Validator(LOOK["function"]["parameters"]).validate(json.loads(arguments))  # type: ignore[index]
    (whole,) = ask(worker, **body)["message"]["tool_calls"]
    assert whole["function"] == {"name": "look", "arguments": arguments}
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]


def test_a_constrained_stream_is_the_whole_answer(worker):
    body = {"response_format": wanted(SCHEMAS["object"]), "seed": 9, "temperature": 1, "max_tokens": 300}
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events_of(worker, **body)]
    assert "".join(pieces) == ask(worker, **body)["message"]["content"]


def test_calls_and_results_of_earlier_turns_are_rendered(worker):
    call = {"id": "c", "type": "function", "function": {"name": "tell", "arguments": '{"yes": true}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    assert ask(worker, messages=messages, tools=[TELL], max_tokens=2, temperature=0)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "param", "reason"),
    [
        ({"response_format": wanted({"type": "nothing"})}, "response_format.json_schema.schema", "valid JSON Schema"),
        ({"response_format": wanted({"not": {}})}, "response_format.json_schema.schema", "Unimplemented"),
        ({"response_format": wanted({"$ref": "#"})}, "response_format.json_schema.schema", "nothing satisfies it"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must be an object"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": "json"}, "response_format", "object"),
        ({"response_format": wanted({"enum": ["x" * 300_000]})}, "response_format.json_schema.schema", "larger"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [TELL], "tool_choice": "sometimes"}, "tool_choice", "required"),
        ({"tools": [TELL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "'f'"),
        ({"tools": [TELL, TELL]}, "tools[1].function.name", "two tools"),
        ({"functions": [TELL["function"]]}, "functions", "use tools"),
        ({"function_call": {"name": "tell"}}, "function_call", "tool_choice"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}],
             "tool_choice": "required"},
            "tools[0].function.parameters",
            "valid JSON Schema",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}],
             "tool_choice": "required"},
            "tools[0].function.parameters",
            "Unimplemented",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_name(worker, body, param, reason):
    response = worker.chat(messages=USER, max_tokens=2, **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert reason in error["message"]


def test_tools_need_a_conversation(worker):
    response = worker.complete(prompt="a", tools=[TELL])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_the_ranks_of_a_group_mask_alike(worker, tiny_model_dir: Path, tmp_path: Path, size):
    bodies: list[dict[str, Any]] = [
        {"response_format": wanted(SCHEMAS["object"]), "temperature": 0},
        {"response_format": wanted(SCHEMAS["array-lengths"]), "seed": 11},
        {"tools": [LOOK, TELL], "tool_choice": "required", "parallel_tool_calls": False, "temperature": 0},
    ]
    with Group(tiny_model_dir, tmp_path, size, "--max-batch", "4") as group:
        group.wait_ready()
        for body in bodies:
            alone, together = ask(worker, **body), ask(group.lead, **body)
            if "tools" in body:
                check_calls(together)
                functions = [[call["function"] for call in each["message"]["tool_calls"]] for each in (alone, together)]
                assert functions[0] == functions[1]
            else:
                assert together == alone
        response = group.lead.chat(messages=USER, max_tokens=2, response_format=wanted({"not": {}}))
        assert response.status_code == 400

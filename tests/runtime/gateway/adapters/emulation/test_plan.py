"""What becomes of a request that an engine cannot answer by itself: engine by engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.gateway.adapters.abilities import OWN, abilities_of
from runtime.gateway.adapters.emulation.plan import MOST_ANSWERS, has_demands, planned
from runtime.gateway.adapters.strict import adapt
from runtime.gateway.attempt import Ask
from runtime.gateway.bodies import parse_chat, parse_completion
from runtime.gateway.errors import ApiError
from runtime.gateway.facts.known import UNKNOWN, Facts
from runtime.gateway.routing.table import EndpointIdentity, Route, Target
from schemas.policy import Breaker, Timeouts

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMED = {"type": "function", "function": {"name": "clock"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
ENGINES = ("worker", "llama-server", "vllm", "ollama", "mlx-lm-server")
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]


def target(engine: str, **more: Any) -> Target:
    identity = EndpointIdentity("http", "10.0.0.1", 80, "", engine, "m")
    return Target("a", "chat", identity, 1, None, Breaker(), Timeouts(), None, "theirs", **more)


def ask(path: str = CHAT, **fields: Any) -> Ask:
    subject = {"messages": HI} if path == CHAT else {"prompt": "hi"}
    raw = json.dumps({"model": "ours", **subject, **fields}).encode()
    body = parse_chat(raw) if path == CHAT else parse_completion(raw)
    return Ask(Route("chat", (), (), 3, 600.0), path, body, "req-1")


def made(found: Ask) -> list[Ask]:
    """Return the requests that the endpoint gets in place of one."""
    assert found.gathering is not None
    return [found.gathering.written(place) for place in range(len(found.gathering.plain))]


def sent(engine: str, path: str = CHAT, seen: str = "", **fields: Any) -> Ask:
    facts = Facts(source=seen, observed_at=0.0) if seen else UNKNOWN  # type: ignore[arg-type]
    return adapt(ask(path, **fields), target(engine), facts)


@pytest.mark.parametrize("engine", (*ENGINES, "openai", "command"))
def test_what_everybody_can_do_is_passed_on_byte_for_byte(engine: str) -> None:
    asked = ask(temperature=0.5, max_tokens=5, stop=["x"])
    assert not has_demands(asked.body)
    adapted = adapt(asked, target(engine))
    if engine != "mlx-lm-server":
        assert adapted is asked
    assert adapted.emulated == ()


@pytest.mark.parametrize("seen", ["", "lm studio", "openai"])
@pytest.mark.parametrize(
    "fields", [{"n": 3}, {"tools": [CLOCK], "tool_choice": NAMED}, {"response_format": JSON_SCHEMA}, {"best_of": 2}]
)
def test_an_engine_that_nobody_knows_is_left_to_itself(seen: str, fields: dict[str, Any]) -> None:
    asked = ask(**fields)
    assert has_demands(asked.body)
    if seen != "lm studio":
        assert adapt(asked, target("openai"), Facts(source=seen, observed_at=0.0)) is asked  # type: ignore[arg-type]
    assert abilities_of("openai") is OWN


def test_a_program_that_was_recognised_behind_the_openai_api_is_asked_in_its_way() -> None:
    assert sent("openai", seen="llama.cpp", n=2).emulated == ("n",)
    assert sent("command", seen="llama.cpp", n=2).emulated == ("n",)
    assert sent("openai", seen="vllm", n=2).emulated == ()
    assert sent("openai", seen="lm studio", response_format={"type": "json_object"}).emulated == ("response_format",)
    # What the files say is believed before what was seen.
    assert sent("ollama", seen="vllm", n=2).emulated == ("n",)


FANNED = {"llama-server", "ollama", "mlx-lm-server"}


@pytest.mark.parametrize("engine", ENGINES)
def test_several_answers_are_several_requests_where_the_engine_gives_one(engine: str) -> None:
    found = sent(engine, n=3, seed=7, temperature=1)
    if engine not in FANNED:
        assert found.gathering is None and found.body.document["n"] == 3
        return
    assert found.emulated == ("n",)
    assert found.gathering is not None
    documents = [part.body.document for part in made(found)]
    assert [document["seed"] for document in documents] == [7, 8, 9]
    for part, document in zip(made(found), documents, strict=True):
        assert "n" not in document
        assert (document["model"], document["temperature"], document["stream"]) == ("theirs", 1, True)
        assert part.body.is_collected and not part.body.is_stream
        assert json.loads(part.body.raw) == document


@pytest.mark.parametrize("engine", sorted(FANNED))
def test_one_answer_is_no_matter(engine: str) -> None:
    found = sent(engine, n=1)
    assert found.gathering is None and "n" not in found.body.document and found.emulated == ()


def test_as_many_answers_as_one_prompt_may_have_and_no_more() -> None:
    found = sent("ollama", n=MOST_ANSWERS)
    assert found.gathering is not None and len(made(found)) == MOST_ANSWERS
    with pytest.raises(ApiError) as error:
        sent("ollama", n=MOST_ANSWERS + 1)
    assert (error.value.status, error.value.param) == (400, "n")


@pytest.mark.parametrize("engine", ["worker", *sorted(FANNED)])
def test_several_prompts_are_several_requests(engine: str) -> None:
    found = sent(engine, TEXT, prompt=["a", "b"], n=2)
    assert found.gathering is not None and found.gathering.prompts == 2
    assert [part.body.document["prompt"] for part in made(found)] == ["a", "a", "b", "b"]
    assert set(found.emulated) == {"prompt", "n"}
    one = sent(engine, TEXT, prompt=["a"])
    assert one.gathering is None and one.body.document["prompt"] in ("a", ["a"])


@pytest.mark.parametrize("engine", ENGINES)
def test_token_numbers_are_taken_or_refused_by_name(engine: str) -> None:
    if engine in ("ollama", "mlx-lm-server"):
        with pytest.raises(ApiError) as error:
            sent(engine, TEXT, prompt=[1, 2, 3])
        assert (error.value.status, error.value.param, error.value.code) == (400, "prompt", "unsupported_parameter")
    else:
        assert sent(engine, TEXT, prompt=[1, 2, 3]).body.document["prompt"] == [1, 2, 3]


def test_a_call_of_one_function_is_demanded_in_each_engines_way() -> None:
    tools = [WEATHER, CLOCK]
    for engine in ("worker", "vllm"):
        assert sent(engine, tools=tools, tool_choice=NAMED).body.document["tool_choice"] == NAMED
    narrowed = sent("llama-server", tools=tools, tool_choice=NAMED)
    assert (narrowed.body.document["tools"], narrowed.body.document["tool_choice"]) == ([CLOCK], "required")
    assert narrowed.gathering is None and narrowed.emulated == ("tool_choice",)
    assert sent("llama-server", tools=tools, tool_choice="required").emulated == ()
    for engine in ("ollama", "mlx-lm-server"):
        found = sent(engine, tools=tools, tool_choice="required", parallel_tool_calls=False)
        assert found.emulated == ("tool_choice",) and found.gathering is not None
        document = found.gathering.written(0).body.document
        assert not {"tools", "tool_choice", "parallel_tool_calls"} & document.keys()
        assert document["messages"][0]["role"] == "system" and '"weather"' in document["messages"][0]["content"]
        assert ("response_format" in document) == (engine == "ollama")


@pytest.mark.parametrize("engine", ["ollama", "mlx-lm-server"])
def test_no_tools_are_told_where_none_may_be_called(engine: str) -> None:
    found = sent(engine, tools=[CLOCK], tool_choice="none")
    assert not {"tools", "tool_choice"} & found.body.document.keys()
    assert found.emulated == ("tool_choice",) and found.gathering is None
    auto = sent(engine, tools=[CLOCK], tool_choice="auto", parallel_tool_calls=True)
    assert auto.body.document["tools"] == [CLOCK] and auto.emulated == ()
    assert not {"tool_choice", "parallel_tool_calls"} & auto.body.document.keys()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED, "tools": [WEATHER]}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [WEATHER]}, "tool_choice"),
        ({"tool_choice": "required", "tools": [{"type": "function"}]}, "tools[0].function"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"best_of": 3}, "best_of"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
    ],
)
def test_what_makes_no_sense_or_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        sent("mlx-lm-server", **fields)
    assert (error.value.status, error.value.param) == (400, param)


IGNORED_BY_OLLAMA: list[dict[str, Any]] = [
    {"logit_bias": {"5": 1}},
    {"top_k": 40},
    {"min_p": 0.1},
    {"repetition_penalty": 1.2},
    {"functions": [{"name": "f"}]},
    {"modalities": ["text", "audio"]},
    {"web_search_options": {}},
    {"best_of": 2},
]


@pytest.mark.parametrize("fields", IGNORED_BY_OLLAMA, ids=lambda fields: next(iter(fields)))
def test_what_ollama_would_pass_over_is_refused_or_left_out_by_the_files(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ApiError) as error:
        sent("ollama", **fields)
    assert (error.value.param, error.value.code) == (name, "unsupported_parameter")
    spared = adapt(ask(**fields), target("ollama", drop_params=(name, "seed"), is_strict=True))
    assert spared.dropped == (name,) and name not in spared.body.document


def test_values_that_change_nothing_are_left_out() -> None:
    asked: dict[str, Any] = {
        "logit_bias": {},
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1,
        "best_of": 1,
        "modalities": ["text"],
    }
    assert set(sent("ollama", **asked).body.document) == {"model", "messages"}


@pytest.mark.parametrize(
    ("engine", "asked", "document"),
    [
        ("ollama", {"max_completion_tokens": 9}, {"max_tokens": 9}),
        ("ollama", {"max_completion_tokens": 9, "max_tokens": 9}, {"max_tokens": 9}),
        ("llama-server", {"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
        ("llama-server", {"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ("mlx-lm-server", {"reasoning_effort": "high"}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ("vllm", {"reasoning_effort": "low"},
         {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"}),
        ("ollama", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ("llama-server", {"continue_final_message": True, "add_generation_prompt": False}, {}),
    ],
)  # fmt: skip
def test_other_names_of_the_same(engine: str, asked: dict[str, Any], document: dict[str, Any]) -> None:
    found = dict(sent(engine, **asked).body.document)
    kept = {key: value for key, value in found.items() if key not in ("model", "messages", "stream", "stream_options")}
    assert kept == document


def test_the_beginning_of_an_answer_is_refused_where_it_cannot_be_continued() -> None:
    with pytest.raises(ApiError) as error:
        sent("mlx-lm-server", continue_final_message=True, add_generation_prompt=False)
    assert error.value.param == "messages"


@pytest.mark.parametrize("engine", [*ENGINES, "openai"])
def test_images_are_refused_where_the_model_is_known_to_be_blind(engine: str) -> None:
    blind = Facts(observed_at=0.0, cannot=frozenset({"vision"}))
    with pytest.raises(ApiError) as error:
        adapt(ask(messages=IMAGE), target(engine), blind)
    assert (error.value.status, error.value.param) == (400, "messages[0].content[0]")
    if engine != "mlx-lm-server":
        assert adapt(ask(messages=IMAGE), target(engine)).body.document["messages"] == IMAGE


NO_TOOLS = Facts(source="llama.cpp", observed_at=0.0, cannot=frozenset({"tools"}))
CALLED = [
    *HI,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone":"UTC"}'}}]},
    {"role": "tool", "tool_call_id": "c1", "name": "clock", "content": "noon"},
]  # fmt: skip


def test_a_model_whose_template_knows_no_tools_is_told_of_them_in_words() -> None:
    found = adapt(ask(tools=[WEATHER, CLOCK], messages=CALLED, stream=True), target("openai"), NO_TOOLS)
    assert found.emulated == ("tools",) and found.gathering is not None
    document = found.gathering.written(0).body.document
    assert not {"tools", "tool_choice", "response_format"} & document.keys()
    system, _, assistant, result = document["messages"]
    assert "You may call" in system["content"] and '"weather"' in system["content"]
    assert assistant == {"role": "assistant", "content": '{"name":"clock","arguments":{"zone":"UTC"}}'}
    assert (result["role"], result["content"]) == ("user", "The function clock has answered: noon")
    forced = adapt(ask(tools=[CLOCK], tool_choice="required"), target("openai"), NO_TOOLS)
    assert forced.emulated == ("tool_choice",) and forced.gathering is not None
    assert forced.gathering.written(0).body.document["response_format"]["type"] == "json_schema"
    with pytest.raises(ApiError) as error:
        adapt(ask(tools=[CLOCK], response_format=JSON_SCHEMA), target("openai"), NO_TOOLS)
    assert error.value.param == "tools"
    knows = Facts(source="llama.cpp", observed_at=0.0, can=frozenset({"tools"}))
    asked = ask(tools=[CLOCK], tool_choice="auto")
    assert adapt(asked, target("openai"), knows) is asked


def test_a_form_is_asked_for_in_words_and_in_the_system_message_that_is_there() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    found = sent("mlx-lm-server", messages=messages, response_format=JSON_SCHEMA, n=2)
    assert found.gathering is not None and found.emulated == ("n", "response_format")
    for part in made(found):
        first, *rest = part.body.document["messages"]
        assert (
            first["content"].startswith("Be brief.\n\n")
            and json.dumps(SCHEMA, separators=(",", ":")) in (first["content"])
        )
        assert rest == HI
    assert sent("ollama", response_format=JSON_SCHEMA).body.document["response_format"] == JSON_SCHEMA


def test_the_form_of_a_text_completion() -> None:
    assert sent("llama-server", TEXT, response_format=JSON_SCHEMA).body.document["json_schema"] == SCHEMA
    with pytest.raises(ApiError) as error:
        sent("ollama", TEXT, response_format=JSON_SCHEMA)
    assert error.value.param == "response_format"


def test_log_probabilities_of_streams_with_tools_come_when_the_answer_is_there() -> None:
    found = sent("llama-server", tools=[CLOCK], logprobs=True, stream=True)
    assert found.emulated == ("logprobs",) and found.gathering is not None
    (part,) = made(found)
    assert "stream" not in part.body.document and not part.body.is_collected
    assert sent("llama-server", tools=[CLOCK], logprobs=True).gathering is None
    several = sent("worker", TEXT, prompt=["a", "b"], logprobs=0)
    assert several.gathering is not None and not several.gathering.written(0).body.is_collected


def test_dropped_parameters_are_left_out_before_anything_is_emulated() -> None:
    found = adapt(ask(n=4, seed=1), target("ollama", drop_params=("n",), is_strict=True))
    assert (found.dropped, found.emulated, found.gathering) == (("n",), (), None)
    both = adapt(ask(n=2, seed=1), target("ollama", drop_params=("seed",), is_strict=True))
    assert (both.dropped, both.emulated) == (("seed",), ("n",))
    assert both.gathering is not None and "seed" not in both.gathering.written(1).body.document


def test_a_plan_makes_the_same_of_the_same() -> None:
    able = abilities_of("ollama")
    one, other = (planned(ask(n=2), able, make=lambda part: part) for _ in range(2))
    assert one.gathering is not None and other.gathering is not None
    assert [part.body.raw for part in made(one)] == [part.body.raw for part in made(other)]


@pytest.mark.parametrize("engine", sorted(FANNED))
def test_copies_of_a_long_request_have_no_bytes_before_they_are_sent(engine: str) -> None:
    found = sent(engine, n=MOST_ANSWERS, messages=[{"role": "user", "content": "x" * 1_000_000}])
    assert found.gathering is not None
    assert [part.body.raw for part in found.gathering.plain] == [b""] * MOST_ANSWERS
    contents = {id(part.body.document["messages"][0]["content"]) for part in found.gathering.plain}
    assert len(contents) == 1, "the conversation is not copied either"
    assert len(found.gathering.written(3).body.raw) > 1_000_000

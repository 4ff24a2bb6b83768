"""How many tokens a prompt has: `POST /tokenize` counts what a chat with the same body would read."""

import json
from typing import Any

import pytest

from tests.runtime.worker import bodies, hostile
from tests.runtime.worker.process import Worker

PATH = "/tokenize"
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a place.", "parameters": {"type": "object", "properties": {}}},
}
CHATS: list[dict[str, Any]] = [
    {"messages": bodies.USER},
    {"messages": [{"role": "system", "content": "Be brief."}, *bodies.USER, {"role": "assistant", "content": "Hi."}]},
    {"messages": bodies.USER, "tools": [TOOL]},
    {"messages": bodies.USER, "tools": [TOOL], "tool_choice": "required"},
    {"messages": bodies.USER, "response_format": {"type": "json_object"}},
    {"messages": [*bodies.USER, {"role": "assistant", "content": "He"}], "continue_final_message": True},
]


def count(worker: Worker, **body: Any) -> int:
    answer = worker.http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert set(told) == {"count", "max_model_len"}
    assert told["max_model_len"] == worker.status()["context_length"]
    return int(told["count"])


@pytest.mark.parametrize("body", CHATS)
def test_the_count_is_what_a_chat_reads(worker: Worker, body: dict[str, Any]) -> None:
    chat = worker.chat(**body, max_tokens=1)
    assert chat.status_code == 200, chat.text
    assert count(worker, **body) == chat.json()["usage"]["prompt_tokens"]


def test_texts_and_tokens_are_counted_too(worker: Worker) -> None:
    read = worker.complete(prompt="the quick brown fox", max_tokens=1).json()["usage"]["prompt_tokens"]
    assert count(worker, prompt="the quick brown fox") == read
    assert count(worker, prompt=[1, 2, 3]) == 3


def test_a_prompt_that_is_too_long_is_counted_and_one_that_is_far_too_long_refused(worker: Worker) -> None:
    most = worker.status()["context_length"]
    long = {"messages": [{"role": "user", "content": "fox " * most}]}
    assert worker.chat(**long, max_tokens=1).status_code == 400
    assert count(worker, **long) > most
    answer = worker.http.post(PATH, json={"messages": [{"role": "user", "content": "fox " * 100 * most}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_counting_generates_nothing_and_takes_no_place(worker: Worker) -> None:
    worker.wait_empty()
    before = worker.status()
    count(worker, messages=bodies.USER)
    after = worker.status()
    assert after["tokens"]["prompt"] == before["tokens"]["prompt"]
    assert after["requests"] == before["requests"]
    assert after["queue"]["waiting"] == 0


def test_broken_bodies_are_refused_by_name_as_for_a_chat(worker: Worker) -> None:
    for name, raw in bodies.BROKEN:
        assert worker.http.post(PATH, content=raw).status_code == 400, name
    for body, status, param in bodies.CHAT:
        answer = worker.http.post(PATH, content=json.dumps(body).encode())
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), body


@pytest.mark.slow
def test_hostile_bodies_are_no_error_of_the_worker(worker: Worker) -> None:
    for case in [*hostile.REFUSED, *hostile.SURVIVED]:
        if case.path == hostile.CHAT:
            raw = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
            assert worker.http.post(PATH, content=raw).status_code in (200, 400, 404, 413), case.id
    assert count(worker, messages=bodies.USER) > 0


def test_an_answer_goes_on_where_the_last_message_ends(worker: Worker) -> None:
    begun = [*bodies.USER, {"role": "assistant", "content": "The answer is"}]
    answer = worker.chat(messages=begun, continue_final_message=True, add_generation_prompt=False, max_tokens=3)
    assert answer.status_code == 200, answer.text
    assert count(worker, messages=begun, continue_final_message=True) < count(worker, messages=begun)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": "yes"}, "continue_final_message"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"reasoning_effort": 5}, "reasoning_effort"),
        (
            {
                "messages": [*bodies.USER, {"role": "assistant", "content": "a"}],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "add_generation_prompt",
        ),
        (
            {
                "messages": [*bodies.USER, {"role": "assistant", "content": "{"}],
                "continue_final_message": True,
                "response_format": {"type": "json_object"},
            },
            "continue_final_message",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused_by_name(worker: Worker, fields: dict[str, Any], param: str) -> None:
    answer = worker.chat(**{"messages": bodies.USER, "max_tokens": 2, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_says_which_stop_string_ended_it(worker: Worker, is_stream: bool) -> None:
    asked = {**bodies.chat(max_tokens=30, temperature=0), "stream": is_stream}
    text = worker.chat(**bodies.chat(max_tokens=30, temperature=0)).json()["choices"][0]["message"]["content"]
    answer = worker.chat(**asked, stop=["never written", text[3:6]])
    if is_stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        (last,) = [choice for event in events for choice in event["choices"] if choice["finish_reason"]]
    else:
        (last,) = answer.json()["choices"]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", text[3:6])

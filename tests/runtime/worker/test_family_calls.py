"""Calls of every family from a real worker, whose random model has the family's marks and a template with tools."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from runtime.worker.tools.families import BARE_JSON, WRITERS
from runtime.worker.tools.reading import PYTHON_TAG
from tests.runtime.worker.bodies import USER
from tests.runtime.worker.process import Worker
from tests.runtime.worker.test_call_grammars import family_of
from tests.runtime.worker.test_structured import LOOK, TELL, check_calls, events_of
from tests.runtime.worker.tiny import TEMPLATE, write_model

SHOWS_TOOLS = "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}" + TEMPLATE
NAMED = {"type": "function", "function": {"name": "tell"}}


def family_model(directory: Path, name: str) -> Path:
    """Write a model whose calls are those of a family."""
    write_model(directory, layers=1, vocab_size=336)  # 16 more than the words, for the marks
    words = Tokenizer.from_file(str(directory / "tokenizer.json"))
    family, _ = family_of(name)
    marks = {
        BARE_JSON: [PYTHON_TAG],
        "mistral": [family.start, "[ARGS]"],
        "kimi_k3": ["<|open|>", "<|close|>", "<|sep|>"],
    }
    words.add_special_tokens([mark for mark in marks.get(name, [family.start, family.end]) if mark])
    words.save(str(directory / "tokenizer.json"))
    place = directory / "tokenizer_config.json"
    settings = {**json.loads(place.read_text()), "chat_template": SHOWS_TOOLS}
    if name != BARE_JSON:
        settings["tool_parser_type"] = name.removesuffix("_list")
    place.write_text(json.dumps(settings))
    return directory


def ask(worker: Worker, **body: Any) -> dict[str, Any]:
    response = worker.chat(messages=USER, tools=[LOOK, TELL], parallel_tool_calls=False, max_tokens=400, **body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return dict(choice)


def called(events: Iterator[dict[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Return names and arguments of the calls of a stream, and its finish reasons."""
    calls: list[list[str]] = []
    finishes = []
    for event in events:
        (choice,) = event["choices"]
        assert not choice["delta"].get("content")
        finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
        for call in choice["delta"].get("tool_calls", ()):
            if "id" in call:
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    return calls, finishes


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_calls_of_every_family_are_made_whole_and_in_streams_and_cut_off_alike(name: str, tmp_path: Path) -> None:
    with Worker(family_model(tmp_path / "model", name), tmp_path / "log", "--max-batch", "2") as worker:
        worker.wait_ready()
        body: dict[str, Any] = {"tools": [LOOK, TELL], "parallel_tool_calls": False, "max_tokens": 400}
        for choice, seed in (("required", 1), (NAMED, 2)):
            whole = ask(worker, tool_choice=choice, seed=seed)
            (made,) = check_calls(whole)
            assert made == "tell" or choice == "required"
            calls, finishes = called(events_of(worker, **body, tool_choice=choice, seed=seed))
            told = [
                [call["function"]["name"], call["function"]["arguments"]] for call in whole["message"]["tool_calls"]
            ]
            assert (calls, finishes) == (told, ["tool_calls"])
        # Cut off at any token, the stream and the whole answer tell the same of it.
        cut = {"tool_choice": NAMED, "seed": 2}
        for most in range(2, 40, 6):
            response = worker.chat(messages=USER, **body | {"max_tokens": most}, **cut)
            (answer,) = response.json()["choices"]
            if answer["finish_reason"] != "length":
                break
            calls, finishes = called(events_of(worker, **body | {"max_tokens": most}, **cut))
            told = [
                [call["function"]["name"], call["function"]["arguments"]]
                for call in answer["message"].get("tool_calls", ())
            ]
            assert (calls, finishes, answer["message"]["content"] or "") == (told, ["length"], "")
        strict = [{**LOOK, "function": {**LOOK["function"], "strict": True}}]  # type: ignore[dict-item]
        for choice in ("auto", "none"):
            response = worker.chat(messages=USER, tools=strict, tool_choice=choice, max_tokens=8, temperature=0)
            assert response.status_code == 200, response.text

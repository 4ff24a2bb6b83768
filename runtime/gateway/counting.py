"""Pure: how many tokens a prompt has, asked of the endpoint's own tokenizer in the words of each program.

Our worker and vLLM take a conversation at `POST /tokenize` and answer `count` (vllm
`entrypoints/serve/tokenize/protocol.py`). llama.cpp's server writes it by `POST /apply-template`, which answers
`prompt`, and cuts that by `POST /tokenize`, which answers `tokens` (ggml-org/llama.cpp `tools/server/README.md`). Where
nothing of the kind is known or there, the size of the text is the answer, marked as an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.gateway.attempt import NO_HEADERS, Ask, AttemptError, BadAnswerError, Result, Steps
from runtime.gateway.bodies import Body
from runtime.gateway.facts.programs import program_of
from runtime.gateway.routing.outcome import COUNTED

TOKENIZE = "/tokenize"
TEMPLATE = "/apply-template"

_VLLM_KEYS = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
_ANSWER_ONLY = frozenset(
    {"stream", "stream_options", "continue_final_message", "add_generation_prompt", "reasoning_effort"}
)
_NOT_THERE = frozenset({404, 405, 501})
"""What servers answer on a path that they have not got: older ones, and others behind a proxy that shows some paths."""


def count_steps(ask: Ask, engine: str, seen: str, estimate: Callable[[], int]) -> Steps:
    """Ask one endpoint how many tokens the prompt of `ask`, a chat request, has.

    `engine` is what the files say that serves there, `seen` the program that was recognised. The body of the result is
    `{"count": ...}`, with `"estimated": true` where nobody could be asked. Raises `AttemptError`.
    """
    match program_of(engine, seen):
        case "worker" | "vllm" as program:
            shown = ask.body.document
            if program == "vllm":
                shown = {key: value for key, value in _with_thinking(shown).items() if key in _VLLM_KEYS}
            try:
                answer = yield _step(ask, TOKENIZE, shown, _Count())
            except AttemptError as error:
                return _estimated(error, estimate)
        case "llama.cpp":
            shown = {key: value for key, value in _with_thinking(ask.body.document).items() if key not in _ANSWER_ONLY}
            try:
                written = yield _step(ask, TEMPLATE, shown, _Prompt())
                prompt = json.loads(written.body or b"{}")["prompt"]
                # As its chat path does: the template leaves out the token that begins a text.
                cut = {"content": prompt, "add_special": True, "parse_special": True}
                answer = yield _step(ask, TOKENIZE, cut, _Tokens())
            except AttemptError as error:
                return _estimated(error, estimate)
        case _:
            return _told(estimate(), is_estimated=True)
    return Result(COUNTED, body=answer.body)


def _with_thinking(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tell the chat template whether to think, as requests for answers do: some prompts end otherwise then."""
    effort = document.get("reasoning_effort")
    if effort is None:
        return document
    return {**document, "chat_template_kwargs": {"enable_thinking": effort != "none"}}


def _step(ask: Ask, path: str, document: Mapping[str, Any], reading: _Count | _Prompt | _Tokens) -> Ask:
    named = {"model": ask.body.model, **document}
    raw = json.dumps(named, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    body = Body(raw, named, ask.body.model, is_stream=False)
    return replace(ask, path=path, body=body, reading=reading, steps=None)


def _estimated(error: AttemptError, estimate: Callable[[], int]) -> Result:
    if error.status not in _NOT_THERE:
        raise error
    return _told(estimate(), is_estimated=True)


def _told(count: int, *, is_estimated: bool = False) -> Result:
    document = {"count": count, **({"estimated": True} if is_estimated else {})}
    return Result(COUNTED, body=json.dumps(document).encode())


@dataclass(frozen=True, slots=True)
class _Count:
    """An answer that says the number."""

    def read(self, raw: bytes, _headers: Mapping[bytes, bytes] = NO_HEADERS) -> bytes:
        count = json.loads(raw)["count"]
        if type(count) is not int or count < 0:
            raise BadAnswerError("no count of tokens")
        return json.dumps({"count": count}).encode()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """An answer with the text of the prompt."""

    def read(self, raw: bytes, _headers: Mapping[bytes, bytes] = NO_HEADERS) -> bytes:
        if not isinstance(json.loads(raw)["prompt"], str):
            raise BadAnswerError("no prompt")
        return raw


@dataclass(frozen=True, slots=True)
class _Tokens:
    """An answer that lists the tokens."""

    def read(self, raw: bytes, _headers: Mapping[bytes, bytes] = NO_HEADERS) -> bytes:
        tokens = json.loads(raw)["tokens"]
        if not isinstance(tokens, list):
            raise BadAnswerError("no list of tokens")
        return json.dumps({"count": len(tokens)}).encode()

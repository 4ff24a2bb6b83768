"""Pure: answers that one endpoint has begun and another one goes on with, so that the client sees one stream.

The endpoint that goes on is shown the text so far without the white space at its end: templates trim messages, and
models begin words with their space. What it gives of that white space is taken out where the client has it already.
A stop string that lies across the break is found only if the first endpoint held its beginning back, as engines do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runtime.gateway import sse
from runtime.gateway.adapters.emulation.gathering import rewritten
from runtime.gateway.attempt import Ask

CONTINUED = b": continued\n\n"
"""The comment that stands where another endpoint goes on. Clients pass over it."""

_HEAD = ("id", "object", "created", "model")
"""What all chunks of one stream have in common."""
_OTHER = ("tool_calls", "function_call", "refusal", "audio")
"""What an answer may hold that nobody can be asked to go on with."""
_THOUGHTS = ("reasoning_content", "reasoning")
_LIMITS = ("max_tokens", "max_completion_tokens")
_FORMS = frozenset(
    {
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "structural_tag"),
        *("grammar", "json_schema", "return_token_ids", "prompt_logprobs", "suffix", "echo"),
    }
)
"""Parameters of some engines: each says how the whole of an answer has to be, or tells more of it than its text."""


class NotContinuedError(Exception):
    """An endpoint that was shown the beginning of an answer does not go on with it; says what it does."""


def may_be_continued(ask: Ask) -> bool:
    """Tell whether the text so far is all that has to be known to go on with the answer to a request."""
    asked = ask.body.document
    if any(asked.get(key) not in (None, 1) for key in ("n", "best_of")):
        return False
    if asked.get("logprobs") not in (None, False) or type(asked.get("logprobs")) is int:
        return False
    if any(asked.get(key) not in (None, "auto", "none") for key in ("tool_choice", "function_call")):
        return False
    if (asked.get("response_format") or {}).get("type", "text") != "text" or any(asked.get(key) for key in _FORMS):
        return False
    if not _is_chat(ask):
        prompt = asked.get("prompt")
        return isinstance(prompt, str) or (isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str))
    last = asked["messages"][-1]
    if asked.get("continue_final_message") is True:
        return last.get("role") == "assistant" and isinstance(last.get("content"), str)
    return last.get("role") != "assistant" and asked.get("add_generation_prompt") in (None, True)


class Continuing:
    """What the client of one request has got of its answer so far."""

    __slots__ = (
        "_ask",
        "_before",
        "_has_thought",
        "_head",
        "_here",
        "_is_chat",
        "_is_exact",
        "_is_finished",
        "_is_lost",
        "_is_odd",
        "_is_spliced",
        "_may_think",
        "_pending",
        "_prompt",
        "_said",
        "_said_at",
        "_text",
        "is_emulated",
    )

    def __init__(self, ask: Ask) -> None:
        """`ask` is one that `may_be_continued`, as its client has sent it."""
        self._ask = ask
        self._is_chat = _is_chat(ask)
        self._text: list[str] = []
        self._head: dict[str, Any] = {}
        self._pending = ""
        """The white space that the client has and the endpoint was not shown, as far as it did not give it as well."""
        self._is_spliced = self._is_finished = self._is_odd = self._is_lost = self._has_thought = False
        self._may_think = True
        """Whether the endpoint that goes on may think first: nothing of the answer itself has come."""
        self._before = 0
        self._here = 0
        """Events with content of the endpoint that is answering, one a token, which is how engines send them."""
        self._said: int | None = None
        """How many tokens it says there are, when `_said_at` events had come."""
        self._said_at = 0
        self._prompt: int | None = None
        """The tokens of the prompt, as the first endpoint says."""
        self._is_exact = True
        """Whether all endpoints that broke off have said how many tokens came of them."""
        self.is_emulated = False
        """Whether the gateway changes what the endpoint says on its way."""

    @property
    def before(self) -> int:
        """Return how many tokens came of the endpoints that broke off."""
        return self._before

    @property
    def is_possible(self) -> bool:
        """Tell whether another endpoint could go on here."""
        is_in_thought = self._has_thought and not self._so_far().strip()
        return not (self._is_odd or self._is_finished or self.is_emulated or is_in_thought)

    def feed(self, events: bytes) -> bytes:
        """Return whole events as the client gets them; raises `NotContinuedError`.

        Those of the first endpoint are only read.
        """
        if not self._is_spliced:
            for event in sse.split_events(events):
                document = self._read(event)
                if document is not None:
                    self._hear(document)
            return events
        told: list[bytes] = []
        for event in sse.split_events(events):
            try:
                told.append(self._spliced(event))
            except NotContinuedError:
                if any(told):
                    self.give_up()
                raise
        return b"".join(told)

    def give_up(self) -> None:
        """Take note that the client may not have got what was read: nobody can go on."""
        self._is_odd = self._is_lost = True

    def broke_off(self) -> Ask:
        """Take note that the endpoint broke off; return the request for the rest, in OpenAI's words.

        Only where it `is_possible`.
        """
        if self._here and (self._said is None or self._said_at != self._here):
            self._is_exact = False
        self._before = self._tokens()
        self._here, self._said, self._said_at = 0, None, 0
        self._is_spliced = True
        # Engines that send half of a character in one event and half in the next write it as two.
        text = self._so_far().encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        shown = text.rstrip()
        self._pending = text[len(shown) :]
        self._may_think = not shown
        asked = dict(self._ask.body.document)
        for key in _LIMITS:
            if type(asked.get(key)) is int:
                asked[key] = max(1, asked[key] - self._before)
        if type(asked.get("min_tokens")) is int:
            asked["min_tokens"] = max(0, asked["min_tokens"] - self._before)
        if shown:
            asked |= _chat_from(asked, shown) if self._is_chat else _text_from(asked, shown)
        return replace(rewritten(self._ask, asked), is_rest=True)

    def ending(self) -> bytes | None:
        """Return what is missing of an answer that is complete, before its usage and `[DONE]`; None where it is not."""
        if self._is_lost:
            return None
        if self._is_finished:
            return b""
        asked = self._ask.body.document
        limits = [asked[key] for key in _LIMITS if type(asked.get(key)) is int]
        if not self.is_possible or not limits or self._tokens() < min(limits):
            return None
        said: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": "", "logprobs": None}
        self._is_finished = True
        return _event({**self._head, "choices": [{"index": 0, **said, "finish_reason": "length"}]})

    def summed(self, events: bytes) -> bytes:
        """Return events that the gateway wrote itself, such as the one with the usage, as parts of this stream."""
        return self.feed(events) if self._is_spliced else events

    def _so_far(self) -> str:
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        return self._text[0] if self._text else ""

    def _tokens(self) -> int:
        here = self._here if self._said is None else self._said + self._here - self._said_at
        return self._before + max(here, 0)

    def _read(self, event: bytes) -> dict[str, Any] | None:
        data = sse.event_data(event)
        if not data or data.strip() == sse.DONE_MARK:
            return None
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            return document
        self._is_odd = True  # nobody knows what the client makes of it
        return None

    def _hear(self, document: Mapping[str, Any]) -> None:
        """Take note of what a chunk says, as the client gets it."""
        choices = document.get("choices")
        if isinstance(choices, list) and choices:
            self._head = self._head or {key: document[key] for key in _HEAD if key in document}
            choice = choices[0]
            is_plain = len(choices) == 1 and isinstance(choice, dict)
            if is_plain and not choice.get("index") and not choice.get("logprobs"):
                self._hear_choice(choice)
            else:
                self._is_odd = True
        usage = document.get("usage")
        if isinstance(usage, dict) and type(usage.get("completion_tokens")) is int:
            self._said, self._said_at = usage["completion_tokens"], self._here
            if not self._is_spliced and type(usage.get("prompt_tokens")) is int:
                self._prompt = usage["prompt_tokens"]

    def _hear_choice(self, choice: Mapping[str, Any]) -> None:
        delta = choice.get("delta") if self._is_chat else choice
        delta = delta if isinstance(delta, dict) else {}
        text = delta.get("content" if self._is_chat else "text")
        thoughts = any(delta.get(key) for key in _THOUGHTS)
        if isinstance(text, str):
            self._text.append(text)
        if (text is not None and not isinstance(text, str)) or any(delta.get(key) for key in _OTHER):
            self._is_odd = True
        self._has_thought = self._has_thought or thoughts
        self._here += bool(text) or thoughts
        self._is_finished = self._is_finished or bool(choice.get("finish_reason"))

    def _spliced(self, event: bytes) -> bytes:
        """Return an event of an endpoint that goes on as a part of the stream that the first one began."""
        document = self._read(event)
        if document is None:
            return event
        choices = document.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            choice = self._spliced_choice(choices[0])
            document["choices"] = [choice, *choices[1:]]
            said = choice.get("delta") if self._is_chat else choice.get("text")
            is_empty = not choice.get("finish_reason") and not _says(said)
        else:
            is_empty = False
        self._hear(document)
        usage = document.get("usage")
        if isinstance(usage, dict):
            document["usage"] = self._summed(usage)
        elif is_empty:
            return b""
        return _event({**document, **self._head})

    def _spliced_choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        if not self._is_chat:
            return {**choice, "text": self._new(choice["text"])} if isinstance(choice.get("text"), str) else choice
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return choice
        if not self._may_think and any(delta.get(key) for key in _THOUGHTS):
            raise NotContinuedError("thinks anew")
        kept = {key: value for key, value in delta.items() if key != "role" or not self._head}
        if isinstance(kept.get("content"), str):
            kept["content"] = self._new(kept["content"])
        return {**choice, "delta": kept}

    def _new(self, text: str) -> str:
        """Return a piece of text without the white space that the client has already."""
        same = 0
        while same < min(len(text), len(self._pending)) and text[same] == self._pending[same]:
            same += 1
        self._pending = "" if same < len(text) else self._pending[same:]
        return text[same:]

    def _summed(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the usage of the whole answer for that of its last part."""
        read, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if type(read) is not int or type(made) is not int:
            return usage
        # The last endpoint has read the beginning of the answer as a part of its prompt.
        read = max(1, read - self._before) if self._prompt is None else self._prompt
        made += self._before
        whole = {**usage, "prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and type(details.get("cached_tokens")) is int:
            whole["prompt_tokens_details"] = {**details, "cached_tokens": min(read, details["cached_tokens"])}
        return whole if self._is_exact and self._prompt is not None else {**whole, "estimated": True}


def _is_chat(ask: Ask) -> bool:
    return ask.path.endswith("/chat/completions")


def _says(said: object) -> bool:
    return any(said.values()) if isinstance(said, dict) else bool(said)


def _chat_from(asked: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return what changes in a chat whose answer begins with a text."""
    messages = list(asked["messages"])
    if asked.get("continue_final_message") is True:
        messages[-1] = {**messages[-1], "content": messages[-1]["content"] + text}
    else:
        messages.append({"role": "assistant", "content": text})
    made: dict[str, Any] = {
        "messages": messages,
        "continue_final_message": True,
        "add_generation_prompt": False,
        # The thoughts are over. llama.cpp goes on with nothing while its model may think
        # (`oaicompat_chat_params_parse` in its server-common.cpp).
        "reasoning_effort": "none",
    }
    told = asked.get("chat_template_kwargs")
    if isinstance(told, dict):
        made["chat_template_kwargs"] = {key: value for key, value in told.items() if key != "enable_thinking"}
    return made


def _text_from(asked: Mapping[str, Any], text: str) -> dict[str, Any]:
    prompt = asked["prompt"]
    return {"prompt": prompt + text if isinstance(prompt, str) else [prompt[0] + text]}


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"

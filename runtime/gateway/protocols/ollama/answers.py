"""Pure: answers in Ollama's words: lines of JSON, of which the last says `done` and what the answer took.

Read in ollama `api/types.go` (`ChatResponse`, `GenerateResponse`, `Metrics`) and `server/routes.go`: times are whole
nanoseconds, and an error in the middle of a stream is a line `{"error": "text"}`, behind which nothing follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.protocols.ollama.calls import Calls
from runtime.gateway.protocols.ollama.requests import Residence
from runtime.gateway.protocols.reading import DONE, KEEP_ALIVE, Reader, Texts
from runtime.gateway.sse import StreamError

NDJSON = "application/x-ndjson"

_VECTOR = re.compile(rb'"embedding"\s*:\s*(\[[^\[\]"]*\])')
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,15})')

_quoted = json.JSONEncoder().encode

Shape = Literal["chat", "generate"]


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks of an answer."""

    now: Callable[[], float]
    """Seconds, for durations. Not the event loop's: uvloop counts in milliseconds."""
    wall: Callable[[], float]
    """Seconds since the epoch."""


def moment(wall: float) -> str:
    """Write a time, in seconds since the epoch, as Ollama does: RFC 3339 in UTC."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Speech:
    """The answer to one chat or prompt, a `translation.Translation`."""

    content_type = NDJSON

    def __init__(self, asked: str, shape: Shape, clock: Clock) -> None:
        """`asked` is the model's name as the client wrote it."""
        self._asked = asked
        self._shape = shape
        self._clock = clock
        self._began_at = clock.now()
        self._first_at: float | None = None
        self._calls = Calls()
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._finish: str | None = None
        self._is_over = False
        self._reader = Reader()
        self._second, self._written = 0, ""
        # Most lines differ in the time and in one text only, so what is around these is written once.
        line = json.dumps({"model": asked, "created_at": "\0", **self._said("\0", "", [], []), "done": False})
        self._frame = line.split('"\\u0000"')

    def whole(self, raw: bytes) -> bytes:
        """Translate OpenAI's document."""
        document = json.loads(raw)
        choice = document["choices"][0]
        message = choice.get("message") or {}
        self._note(document)
        self._finish = choice.get("finish_reason")
        self._calls.feed(message.get("tool_calls") or [])
        said = self._said(
            _text(message, "content", "refusal") or _text(choice, "text"),
            _text(message, "reasoning_content", "reasoning"),
            self._calls.take(is_cut=self._finish == "length"),
            _logprobs(choice),
        )
        return _json(self._line(said, **self._ending()))

    def feed(self, events: bytes) -> bytes:
        """Translate whole events of OpenAI's stream."""
        lines: list[bytes] = []
        for event in self._reader.read(events):
            if self._is_over:
                break
            if isinstance(event, Texts):
                lines.append(self._texts(event))
            elif isinstance(event, StreamError):
                self._is_over = True
                lines.append(_json({"error": event.message}))
            elif event == KEEP_ALIVE:
                # A piece without content: lines of JSON know no comments.
                lines.append(self._text_lines([""]))
            elif event == DONE:
                self._is_over = True
                if calls := self._calls.take(is_cut=self._finish in (None, "length")):
                    lines.append(_json(self._line(self._said("", "", calls, []))))
                lines.append(_json(self._line(self._said("", "", [], []), **self._ending())))
            elif isinstance(event, Mapping):
                lines.extend(self._chunk(event))
        return b"\n".join((*lines, b"")) if lines else b""

    def _chunk(self, chunk: Mapping[str, Any]) -> list[bytes]:
        self._note(chunk)
        choices = chunk.get("choices")
        if not choices:
            return []
        choice = choices[0]
        delta = choice.get("delta") or {}
        text = _text(delta, "content", "refusal") or _text(choice, "text")
        thinking = _text(delta, "reasoning_content", "reasoning")
        if pieces := delta.get("tool_calls"):
            self._calls.feed(pieces)
        calls: list[dict[str, Any]] = []
        if finish := choice.get("finish_reason"):
            self._finish = finish
            calls = self._calls.take(is_cut=finish == "length")
        logprobs = _logprobs(choice)
        if self._first_at is None and (text or thinking or pieces):
            self._first_at = self._clock.now()
        if thinking or calls or logprobs:
            return [_json(self._line(self._said(text, thinking, calls, logprobs)))]
        return [self._text_lines([text])] if text else []

    def _texts(self, said: Texts) -> bytes:
        if self._first_at is None:
            self._first_at = self._clock.now()
        if said.is_thinking:
            return b"\n".join([_json(self._line(self._said("", text, [], []))) for text in said.texts])
        return self._text_lines(said.texts)

    def _text_lines(self, texts: list[str]) -> bytes:
        """Return lines of text that came together, and have one time."""
        before, between, after = self._frame
        head = f'{before}"{self._moment()}"{between}'
        return "\n".join([f"{head}{_quoted(text)}{after}" for text in texts]).encode()

    def _moment(self) -> str:
        """Write the time; its whole seconds are written once, which takes longer than the rest of a line."""
        wall = self._clock.wall()
        second = int(wall)
        if second != self._second:
            self._second, self._written = second, moment(second)[: -len(".000000Z")]
        return f"{self._written}.{int((wall - second) * 1_000_000):06}Z"

    def _note(self, document: Mapping[str, Any]) -> None:
        """Keep what a document says of the cost; `timings` is llama.cpp's, in milliseconds."""
        usage, timings = document.get("usage"), document.get("timings")
        if isinstance(usage, dict):
            self._usage = usage
        if isinstance(timings, dict):
            self._timings = timings

    def _said(
        self, text: str, thinking: str, calls: list[dict[str, Any]], logprobs: list[dict[str, Any]]
    ) -> dict[str, Any]:
        thought = {"thinking": thinking} if thinking else {}
        called = {"tool_calls": calls} if calls else {}
        if self._shape == "chat":
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text, **thought, **called}}
        else:
            said = {"response": text, **thought, **called}
        return {**said, "logprobs": logprobs} if logprobs else said

    def _line(self, said: dict[str, Any], **ending: Any) -> dict[str, Any]:
        return {"model": self._asked, "created_at": self._moment(), **said, "done": False, **ending}

    def _ending(self) -> dict[str, Any]:
        """Return what the last line says. How long a load took is not told by endpoints: it is in the prompt's time."""
        ended_at = self._clock.now()
        first_at = self._began_at if self._first_at is None else self._first_at
        return {
            "done": True,
            "done_reason": "length" if self._finish == "length" else "stop",
            "total_duration": _nanoseconds(ended_at - self._began_at),
            "load_duration": 0,
            "prompt_eval_count": _count(self._usage, "prompt_tokens"),
            "prompt_eval_duration": _measured(self._timings, "prompt_ms", first_at - self._began_at),
            "eval_count": _count(self._usage, "completion_tokens"),
            "eval_duration": _measured(self._timings, "predicted_ms", ended_at - first_at),
            **({"estimated": True} if self._usage.get("estimated") is True else {}),
        }


def resident(asked: str, shape: Shape, reason: Residence, wall: float) -> dict[str, Any]:
    """Return the answer to a chat or prompt that only has a model loaded or dropped."""
    said = {"message": {"role": "assistant", "content": ""}} if shape == "chat" else {"response": ""}
    return {"model": asked, "created_at": moment(wall), **said, "done": True, "done_reason": reason}


@dataclass(frozen=True, slots=True)
class Instead:
    """The answer to a request that was sent for its effect only, a `translation.Translation`."""

    said: Callable[[], Mapping[str, Any]]
    """What the client is told when it is done."""
    content_type: str = NDJSON

    def whole(self, _raw: bytes) -> bytes:
        """Say it."""
        return _json(self.said())

    def feed(self, _events: bytes) -> bytes:
        """Say nothing: it is not sent as a stream."""
        return b""


@dataclass(frozen=True, slots=True)
class Vectors:
    """The answer of `/api/embed`, a `translation.Translation`; vectors are not taken apart."""

    asked: str
    clock: Clock
    began_at: float
    content_type: str = NDJSON

    def whole(self, raw: bytes) -> bytes:
        """Translate OpenAI's document."""
        tokens = _PROMPT_TOKENS.search(raw)
        head = {
            "model": self.asked,
            "total_duration": _nanoseconds(self.clock.now() - self.began_at),
            "load_duration": 0,
            "prompt_eval_count": int(tokens[1]) if tokens else 0,
        }
        return b'%b, "embeddings": [%b]}' % (_json(head)[:-1], b",".join(_vectors(raw)))

    def feed(self, _events: bytes) -> bytes:
        """Say nothing: vectors do not come in streams."""
        return b""


@dataclass(frozen=True, slots=True)
class Vector:
    """The answer of the older `/api/embeddings`, a `translation.Translation`: one vector and nothing else."""

    content_type: str = NDJSON

    def whole(self, raw: bytes) -> bytes:
        """Translate OpenAI's document."""
        (vector,) = _vectors(raw)
        return b'{"embedding": %b}' % vector

    def feed(self, _events: bytes) -> bytes:
        """Say nothing: vectors do not come in streams."""
        return b""


def _vectors(raw: bytes) -> list[bytes]:
    found = _VECTOR.findall(raw)
    if not found:
        raise BadAnswerError("no vectors")
    return found


def _text(document: Mapping[str, Any], *keys: str) -> str:
    """Return the first text under one of the keys; empty where there is none."""
    found = next((document[key] for key in keys if document.get(key)), "")
    if not isinstance(found, str):
        raise BadAnswerError("content that is no text")
    return found


def _logprobs(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the log probabilities of a chat or, in their older shape, of a completion."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return []
    if isinstance(found.get("content"), list):
        return [
            {**_token(each), "top_logprobs": [_token(other) for other in each.get("top_logprobs") or []]}
            for each in found["content"]
        ]
    tokens, values, tops = (found.get(key) or [] for key in ("tokens", "token_logprobs", "top_logprobs"))
    made: list[dict[str, Any]] = []
    for index, (token, value) in enumerate(zip(tokens, values, strict=False)):
        top = tops[index] if index < len(tops) and tops[index] else {}
        others = [{"token": other, "logprob": each} for other, each in top.items()]
        made.append({"token": token, "logprob": value or 0.0, "top_logprobs": others})
    return made


def _token(each: Mapping[str, Any]) -> dict[str, Any]:
    spelt = {} if each.get("bytes") is None else {"bytes": each["bytes"]}
    return {"token": each["token"], "logprob": each["logprob"], **spelt}


def _count(usage: Mapping[str, Any], key: str) -> int:
    found = usage.get(key)
    return found if type(found) is int else 0


def _measured(timings: Mapping[str, Any], key: str, otherwise_s: float) -> int:
    """Return nanoseconds: what the endpoint has measured, else what was seen from here."""
    found = timings.get(key)
    if isinstance(found, int | float) and not isinstance(found, bool) and found >= 0:
        return _nanoseconds(found / 1000)
    return _nanoseconds(otherwise_s)


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1_000_000_000))


def _json(document: Mapping[str, Any]) -> bytes:
    # In ASCII: clients that split text into lines, ollama-python among them, also split at U+0085, U+2028 and U+2029.
    return json.dumps(document).encode()

"""Pure: what the events of OpenAI's streams say, read cheaply.

Nearly all events of a stream are the same but for a piece of text: engines write one token an event, by the same code.
So the first of them is read as JSON, and what stands around its text is remembered; those that follow and have the same
around theirs are not taken apart, and the texts of all that arrived together are read at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from runtime.gateway import sse

KEEP_ALIVE: Literal["keep-alive"] = "keep-alive"
"""A comment: the client waits, and somebody is there."""
DONE: Literal["done"] = "done"
"""`[DONE]`: the answer is complete; always the last one where nothing went wrong."""
THINKING = ("reasoning_content", "reasoning")
"""Names of thinking in a delta: vLLM's, llama.cpp's, SGLang's and our worker's; Ollama's and that of newer vLLMs."""
MOST_FRAMES = 16
"""How often a reader remembers anew what stands around texts: it costs as much as reading two events."""

_DATA = b"data: "
_END = b"\n\n"
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n")
_VALUES = {key: re.compile(rb'"%b"\s*:\s*("(?:[^"\\]|\\.)*")' % key.encode()) for key in ("content", *THINKING)}
_decode = json.JSONDecoder().raw_decode
_PROBE = "\0"
"""A text that no model writes, in the place of the one that was found."""


class Texts(NamedTuple):
    """Events in a row that say nothing but a text each, none of which is empty."""

    texts: list[str]
    is_thinking: bool


Event = Mapping[str, Any] | Texts | sse.StreamError | Literal["keep-alive", "done"]
"""A chunk, several chunks of text, an error (the last one then), a comment, or the end."""


class Reader:
    """Reads one stream."""

    __slots__ = ("_after", "_before", "_frames", "_is_thinking")

    def __init__(self) -> None:
        self._before = self._after = b""
        """What stands before and behind the text in the events that are known by it."""
        self._is_thinking = False
        self._frames = 0

    def read(self, events: bytes) -> Iterator[Event]:
        """Yield what whole server-sent events say; those that are no JSON object are left out.

        That an event is among `Texts` or comes as a chunk depends on what came before it, and says the same.
        """
        start, size = 0, len(events)
        while start < size:
            if self._before and events.startswith(self._before, start):
                found = self._run(events, start)
                if found is not None:
                    texts, start = found
                    if texts:
                        yield Texts(texts, self._is_thinking)
                    continue
                # Its like is not tried again: a stream of them would be searched to its end for each.
                self._before = b""
            end = _EVENT_END.search(events, start)
            stop = size if end is None else end.end()
            said = self._said(events[start:stop])
            start = stop
            if said is not None:
                yield said

    def _run(self, events: bytes, start: int) -> tuple[list[str], int] | None:
        """Return the texts of the known events from `start` on, and where they end; None where the first is none."""
        before, after, found = self._before, self._after, []
        while events.startswith(before, start):
            begin = start + len(before)
            end = events.find(after, begin)
            text = events[begin:end]
            if end < 0 or b"\n" in text:
                # It goes on in another way: a chunk of the next second, or one that says more.
                break
            found.append(text)
            start = end + len(after)
        if not found:
            return None
        try:
            # A line end between them, which no JSON text can hold: none that is broken can go on in the next one.
            written = (b"[%b]" % b",\n".join(found)).decode()
            texts, end = _decode(written)
        except (ValueError, RecursionError):
            return None
        if end != len(written) or len(texts) != len(found) or set(map(type, texts)) != {str}:
            return None
        return [text for text in texts if text] if "" in texts else texts, start

    def _said(self, event: bytes) -> Event | None:
        is_plain = event.startswith(_DATA) and event.endswith(_END) and b"\n" not in event[:-2] and b"\r" not in event
        data = event[len(_DATA) : -2] if is_plain else sse.event_data(event)
        if not data:
            return KEEP_ALIVE if event.startswith(b":") else None
        if data.strip() == sse.DONE_MARK:
            return DONE
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict):
            return None
        if document.get("error"):
            sign = sse.read_event(event)
            return sign if isinstance(sign, sse.StreamError) else document
        if is_plain and self._frames < MOST_FRAMES:
            self._remember(event, document)
        return document

    def _remember(self, event: bytes, document: dict[str, Any]) -> None:
        """Remember what stands around the text of an event that says nothing else."""
        key = _only_text(document)
        value = None if key is None else _VALUES[key].search(event)
        if key is None or value is None:
            return
        self._frames += 1
        before, after = event[: value.start(1)], event[value.end(1) :]
        probed = json.loads(before[len(_DATA) :] + json.dumps(_PROBE).encode() + after)
        delta = probed["choices"][0]["delta"]
        if delta.get(key) != _PROBE:
            # The text that was found is another one of the same name.
            return
        delta[key] = document["choices"][0]["delta"][key]
        if probed == document:
            self._before, self._after, self._is_thinking = before, after, key in THINKING


def _only_text(document: Mapping[str, Any]) -> str | None:
    """Return the name under which a chunk has its text; None where it says more than that, or nothing."""
    choices = document.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return None
    choice = choices[0]
    delta = choice.get("delta")
    if not isinstance(delta, dict) or choice.get("index", 0) != 0:
        return None
    if any(choice.get(key) for key in ("finish_reason", "logprobs", "text")):
        return None
    if document.get("usage") is not None or document.get("timings") is not None:
        return None
    keys = [key for key, value in delta.items() if value and key != "role"]
    key = keys[0] if len(keys) == 1 else None
    return key if key in _VALUES and isinstance(delta[key], str) else None

"""Pure: answers of the Responses API: a chat completion as a response, and its stream as typed events.

A stream begins with `response.created` and ends with exactly one of `response.completed`, `response.incomplete` and
`response.failed`; every event has the next `sequence_number`, from 0 on; what was added is done before the end. There
is no `[DONE]`. Order and fields: openai-python `types/responses/response_*_event.py` and OpenAI's page "Responses
streaming".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.gateway.attempt import BadAnswerError
from runtime.gateway.protocols.reading import DONE, KEEP_ALIVE, THINKING, Reader, Texts
from runtime.gateway.protocols.responses.document import (
    Head,
    Status,
    call_item,
    ending,
    failure,
    logprobs_of,
    message_item,
    reasoning_item,
    reasoning_part,
    refusal_part,
    text_part,
    usage_of,
)
from runtime.gateway.protocols.responses.items import arguments_text
from runtime.gateway.sse import StreamError

_COMMENT = b": keep-alive\n\n"
_TEXT_DELTA = 'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":'
_quoted = json.JSONEncoder().encode


@dataclass(slots=True)
class _Part:
    """A part of an item that is being written."""

    item_id: str
    output_index: int
    index: int
    kind: str
    """What its events are called."""
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def document(self, text: str) -> dict[str, Any]:
        match self.kind:
            case "output_text":
                return text_part(text, self.logprobs)
            case "refusal":
                return refusal_part(text)
            case _:
                return reasoning_part(text)


@dataclass(slots=True)
class _Said:
    """A message or reasoning that is being written: its parts that are done, and the one that is not."""

    id: str
    index: int
    make: Callable[..., dict[str, Any]]
    done: list[dict[str, Any]] = field(default_factory=list)
    part: _Part | None = None


@dataclass(slots=True)
class _Call:
    """A call that is being written."""

    id: str
    index: int
    call_id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class Responses:
    """The translation of one answer."""

    content_type = "text/event-stream"

    def __init__(self, head: Head, now: Callable[[], float]) -> None:
        """`now` gives seconds since the epoch."""
        self._head = head
        self._now = now
        self._number = 0
        self._output: list[dict[str, Any]] = []
        """The items in their order, those that are not done included."""
        self._said: _Said | None = None
        self._calls: dict[int, _Call] = {}
        """Calls that are not done, by the number that the stream gives them."""
        self._finish_reason: object = None
        self._usage: object = None
        self._is_over = False
        self._reader = Reader()
        self._written: list[str] = []
        """What was numbered and not returned yet."""

    def whole(self, raw: bytes) -> bytes:
        """Return the response that says what a chat completion says; raises `attempt.BadAnswerError`."""
        document = json.loads(raw)
        choices = document.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0].get("message"), dict):
            raise BadAnswerError("no message")
        status, reason = ending(choices[0].get("finish_reason"))
        output = list(self._items(choices[0], choices[0]["message"]))
        if status == "incomplete" and output:
            output[-1]["status"] = status
        usage = usage_of(document.get("usage"))
        return json.dumps(self._response(status, output, usage, reason), ensure_ascii=False).encode(errors="replace")

    def feed(self, events: bytes) -> bytes:
        """Return the events that say what the events of a chat completion say."""
        # Where an event makes no sense, what was written before it is kept: an error event follows, and goes behind it.
        written = self._written
        for event in self._reader.read(events):
            if self._is_over:
                break
            if event == KEEP_ALIVE:
                written.append(_COMMENT.decode())
                continue
            if self._number == 0:
                written.append(self._event("response.created", response=self._response("in_progress")))
                written.append(self._event("response.in_progress", response=self._response("in_progress")))
            if event == DONE:
                written.extend(self._end())
            elif isinstance(event, Texts):
                written.extend(self._text("reasoning_text" if event.is_thinking else "output_text", event.texts))
            elif isinstance(event, StreamError):
                written.extend(self._fail(event))
            elif isinstance(event, Mapping):
                written.extend(self._chunk(event))
        said = "".join(written).encode(errors="replace")
        written.clear()
        return said

    # --- whole

    def _items(self, choice: Mapping[str, Any], message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        index = 0
        reasoning = _first_text(message, THINKING)
        if reasoning:
            yield reasoning_item(self._head.item_id("rs", index), "completed", [reasoning_part(reasoning)])
            index += 1
        calls = message.get("tool_calls") or []
        text, refusal = message.get("content"), message.get("refusal")
        parts = [text_part(text, logprobs_of(choice))] if isinstance(text, str) and text else []
        if isinstance(refusal, str) and refusal:
            parts.append(refusal_part(refusal))
        if parts or not (calls or reasoning):
            yield message_item(self._head.item_id("msg", index), "completed", parts or [text_part("")])
            index += 1
        for call in calls:
            function, item_id = call["function"], self._head.item_id("fc", index)
            call_id = call.get("id") or self._head.item_id("call", index)
            arguments = arguments_text(function.get("arguments"))
            yield call_item(item_id, "completed", call_id, function["name"], arguments)
            index += 1

    # --- streams

    def _chunk(self, chunk: Mapping[str, Any]) -> Iterator[str]:
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta")
            if isinstance(delta, dict):
                yield from self._delta(choice, delta)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def _delta(self, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> Iterator[str]:
        reasoning = _first_text(delta, THINKING)
        if reasoning:
            yield from self._text("reasoning_text", [reasoning])
        text = delta.get("content")
        if isinstance(text, str) and text:
            # Most events of most streams: text, and nothing is known of its tokens.
            yield from self._text("output_text", [text], logprobs_of(choice) if choice.get("logprobs") else ())
        refusal = delta.get("refusal")
        if isinstance(refusal, str) and refusal:
            yield from self._text("refusal", [refusal])
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                yield from self._call(call)

    def _text(self, kind: str, texts: list[str], logprobs: Sequence[dict[str, Any]] = ()) -> Iterator[str]:
        part = None if self._said is None else self._said.part
        if part is None or part.kind != kind:
            part = yield from self._open(kind)
        part.texts.extend(texts)
        if kind != "output_text":
            for text in texts:
                yield self._event(f"response.{kind}.delta", **_place(part), delta=text)
            return
        part.logprobs.extend(logprobs)
        # Written by hand: there is one for every token.
        number = self._number
        self._number = number + len(texts)
        between = (
            f',"item_id":"{part.item_id}","output_index":{part.output_index},"content_index":{part.index},"delta":'
        )
        after = f',"logprobs":{json.dumps(logprobs) if logprobs else "[]"}}}\n\n'
        yield "".join(
            [f"{_TEXT_DELTA}{place}{between}{_quoted(text)}{after}" for place, text in enumerate(texts, number)]
        )

    def _open(self, kind: str) -> Generator[str, None, _Part]:
        """Begin a part, and the item that it is in where that is not the one that is being written; return the part."""
        is_reasoning = kind == "reasoning_text"
        said = self._said
        if said is None or (said.make is reasoning_item) is not is_reasoning:
            yield from self._end_said("completed")
            make = reasoning_item if is_reasoning else message_item
            item_id = self._head.item_id("rs" if is_reasoning else "msg", len(self._output))
            said = self._said = _Said(item_id, len(self._output), make)
            yield self._added(make(item_id, "in_progress"))
        yield from self._end_part(said)
        part = said.part = _Part(said.id, said.index, len(said.done), kind)
        yield self._event("response.content_part.added", **_place(part), part=part.document(""))
        return part

    def _call(self, piece: Mapping[str, Any]) -> Iterator[str]:
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        name, call_id = function.get("name"), piece.get("id")
        place = self._place_of(piece.get("index"), call_id, name)
        call = self._calls.get(place)
        if call is None:
            if not name:
                raise BadAnswerError("a call of no function")
            yield from self._end_said("completed")
            index = len(self._output)
            given_id = call_id if isinstance(call_id, str) and call_id else self._head.item_id("call", index)
            call = self._calls[place] = _Call(self._head.item_id("fc", index), index, given_id, str(name))
            yield self._added(call_item(call.id, "in_progress", call.call_id, call.name))
        arguments = function.get("arguments")
        text = arguments_text(arguments) if arguments is not None else ""
        if text:
            call.arguments.append(text)
            yield self._event(
                "response.function_call_arguments.delta", item_id=call.id, output_index=call.index, delta=text
            )

    def _place_of(self, index: object, call_id: object, name: object) -> int:
        """Return the number of the call that a piece belongs to.

        Ollama before 0.7 numbers every call 0, and some servers number none: a name with another id begins a call.
        """
        last = max(self._calls, default=-1)
        if not isinstance(index, int):
            return last + 1 if name else last
        known = self._calls.get(index)
        is_another = known is not None and name and call_id and call_id != known.call_id
        return last + 1 if is_another else index

    def _end(self) -> Iterator[str]:
        status, reason = ending(self._finish_reason)
        if not self._output:
            yield from self._open("output_text")
        yield from self._end_items(status)
        response = self._response(status, self._output, usage_of(self._usage), reason)
        yield self._event(f"response.{status}", response=response)
        self._is_over = True

    def _fail(self, error: StreamError) -> Iterator[str]:
        yield from self._end_items("incomplete")
        response = self._head.response(
            "failed", self._output, usage=usage_of(self._usage), error=failure(error.message, error.code)
        )
        yield self._event("response.failed", response=response)
        self._is_over = True

    def _end_items(self, status: Status) -> Iterator[str]:
        """End what is not done; the last item has the status of the response, all before it are complete."""
        last = len(self._output) - 1
        said = self._said
        if said is not None:
            yield from self._end_said(status if said.index == last else "completed")
        for call in self._calls.values():
            arguments = "".join(call.arguments)
            ended = status if call.index == last else "completed"
            yield self._event(
                "response.function_call_arguments.done",
                item_id=call.id,
                output_index=call.index,
                name=call.name,
                arguments=arguments,
            )
            yield self._item_done(call.index, call_item(call.id, ended, call.call_id, call.name, arguments))
        self._calls.clear()

    def _end_said(self, status: Status) -> Iterator[str]:
        said = self._said
        if said is None:
            return
        yield from self._end_part(said)
        yield self._item_done(said.index, said.make(said.id, status, said.done))
        self._said = None

    def _end_part(self, said: _Said) -> Iterator[str]:
        part = said.part
        if part is None:
            return
        text = "".join(part.texts)
        place, document = _place(part), part.document(text)
        match part.kind:
            case "output_text":
                yield self._event("response.output_text.done", **place, text=text, logprobs=part.logprobs)
            case "refusal":
                yield self._event("response.refusal.done", **place, refusal=text)
            case _:
                yield self._event("response.reasoning_text.done", **place, text=text)
        yield self._event("response.content_part.done", **place, part=document)
        said.done.append(document)
        said.part = None

    def _added(self, item: dict[str, Any]) -> str:
        self._output.append(item)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _item_done(self, index: int, item: dict[str, Any]) -> str:
        self._output[index] = item
        return self._event("response.output_item.done", output_index=index, item=item)

    def _event(self, kind: str, **fields: Any) -> str:
        document = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"

    def _response(
        self,
        status: Status,
        output: Sequence[Mapping[str, Any]] = (),
        usage: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        completed_at = int(self._now()) if status == "completed" else None
        return self._head.response(status, output, usage=usage, reason=reason, completed_at=completed_at)


def _place(part: _Part) -> dict[str, Any]:
    return {"item_id": part.item_id, "output_index": part.output_index, "content_index": part.index}


def _first_text(document: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((value for key in keys if isinstance(value := document.get(key), str) and value), "")

"""Streams without the calls behind their first one."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway.adapters.emulation.one_call import FirstCall
from runtime.gateway.sse import DONE, event_data, split_events


def event(*calls: dict[str, Any], **delta: Any) -> bytes:
    made = {**delta, **({"tool_calls": list(calls)} if calls else {})}
    return b"data: " + json.dumps({"id": "a", "choices": [{"index": 0, "delta": made}]}).encode() + b"\n\n"


def begins(index: int, name: str) -> dict[str, Any]:
    return {"index": index, "id": f"call-{index}", "type": "function", "function": {"name": name, "arguments": ""}}


def goes_on(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": text}}


STREAM = [
    event(role="assistant", content=""),
    event(content='I call "tool_calls".'),
    event(begins(0, "f")),
    event(goes_on(0, '{"x":')),
    event(begins(1, "g"), goes_on(0, "1}")),
    event(goes_on(1, "{}")),
    event(begins(2, "h"), content="more"),
    b'data: not JSON with "tool_calls"\n\n',
    DONE,
]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=len(STREAM), max_size=len(STREAM)))
def test_only_the_first_call_is_left_however_events_come_together(ends: list[bool]) -> None:
    first, said, held = FirstCall(), b"", b""
    for piece, is_end in zip(STREAM, ends, strict=True):
        held += piece
        if is_end:
            said, held = said + first.feed(held), b""
    said += first.feed(held)
    pieces = split_events(said)
    assert pieces[:4] == STREAM[:4] and pieces[-2:] == STREAM[-2:]
    calls = [
        call
        for piece in pieces[:-2]
        for choice in json.loads(event_data(piece))["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"x":1}'
    assert [call["id"] for call in calls if "id" in call] == ["call-0"]
    assert json.loads(event_data(pieces[6]))["choices"][0]["delta"] == {"content": "more"}

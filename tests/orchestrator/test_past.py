"""`orchestrate requests` and `orchestrate errors`: what is kept of the past, as people and programs read it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from orchestrator.past import error_lines, request_lines
from schemas.history import ErrorGroup, PastError, PastRequest
from tests.fakes.upstream import FakeUpstream, refuses
from tests.orchestrator.program import call
from tests.ports import free_port
from tests.runtime.gateway.harness import CHAT, STREAM, Conf, gateway_process, stack_document

STREAMED = PastRequest(
    id="req-2",
    at=200.0,
    role="chat",
    model="gpt-4o-mini",
    path="/v1/chat/completions",
    is_stream=True,
    endpoint="spare",
    attempts=("main", "spare"),
    fallback="small",
    outcome="ok",
    status=200,
    tokens=40,
    first_s=0.25,
    took_s=4.25,
    tokens_per_s=10.0,
)
LEFT = STREAMED.model_copy(
    update={
        "id": "req-1",
        "at": 100.0,
        "attempts": (),
        "fallback": "",
        "outcome": "client left",
        "status": None,
        "tokens": None,
        "first_s": None,
        "tokens_per_s": None,
    }
)
REFUSED = PastError(
    request="req-2", at=200.0, role="chat", endpoint="main", outcome="refused", error="port closed", status=200
)
NOBODY = REFUSED.model_copy(update={"request": "req-1", "at": 100.0, "endpoint": "", "status": None})


def clock(at: float) -> str:
    return f"at {at:.0f}"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_requests_are_a_table_with_the_newest_at_the_bottom() -> None:
    head, first, second = map(cells, request_lines([STREAMED, LEFT], clock))
    assert head == ["WHEN", "ASKED FOR", "STATUS", "OUTCOME", "WAY", "TOKENS", "FIRST", "TOOK", "TOKENS/S", "ID"]
    assert first == ["at 100", "gpt-4o-mini", "left", "client left", "nobody", "-", "-", "4.250 s", "-", "req-1"]
    way = "main -> spare, fallback small"
    assert second == ["at 200", "gpt-4o-mini", "200", "ok", way, "40", "0.250 s", "4.250 s", "10.0", "req-2"]


def test_errors_are_a_table_and_counted_where_they_are_alike() -> None:
    groups = [
        ErrorGroup(endpoint="main", outcome="refused", count=12, last_at=200.0),
        ErrorGroup(endpoint="", outcome="unavailable", count=1, last_at=80.0),
    ]
    head, first, second, *alike = error_lines([REFUSED, NOBODY], groups, clock, 260.0)
    assert cells(head) == ["WHEN", "ROLE", "ENDPOINT", "OUTCOME", "CLIENT GOT", "ID", "ERROR"]
    assert cells(first) == ["at 100", "chat", "-", "refused", "nothing: it left", "req-1", "port closed"]
    assert cells(second) == ["at 200", "chat", "main", "refused", "200", "req-2", "port closed"]
    assert alike == [
        "In all that is kept:",
        "  12 x main: refused, last 1 min ago",
        "  1 x nobody: unavailable, last 3 min ago",
    ]


@pytest.mark.slow
async def test_the_program_shows_what_a_gateway_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "orchestrate"))
    monkeypatch.delenv("ORCHESTRATE_CONF", raising=False)
    port, conf = free_port(), Conf(tmp_path)
    where = ("--conf", str(conf.root))
    async with FakeUpstream(refuses(500)) as first, FakeUpstream() as second:
        conf.write_stack(stack_document({"a": first.url, "b": second.url}, gateway={"port": port}))
        code, _, error = await call(capsys, *where, "requests", "lab")
        assert (code, "does not answer" in error, "status lab" in error) == (1, True, True)
        async with gateway_process(conf, port=port) as gateway, gateway.client() as client:
            code, out, _ = await call(capsys, *where, "requests", "lab")
            assert (code, out) == (0, "No request was answered yet.\n")
            code, out, _ = await call(capsys, *where, "errors", "lab")
            assert (code, out) == (0, "No error was seen yet.\n")
            for body in (CHAT, STREAM):
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            code, out, _ = await call(capsys, *where, "requests", "lab")
            assert code == 0
            assert [cells(line)[4] for line in out.splitlines()] == ["WAY", "a -> b", "a -> b"]
            code, out, _ = await call(capsys, *where, "requests", "lab", "--json", "-n", "1")
            line = json.loads(out)
            assert (code, line["type"], line["attempts"], line["is_stream"]) == (0, "request", ["a", "b"], True)
            code, out, _ = await call(capsys, *where, "requests", "lab", "--csv", "--role", "chat")
            rows = list(csv.DictReader(io.StringIO(out)))
            assert [row["attempts"] for row in rows] == ["a > b", "a > b"]
            code, out, _ = await call(capsys, *where, "requests", "lab", "--status", "503")
            assert (code, out) == (0, "No such request is kept.\n")
            code, out, _ = await call(capsys, *where, "errors", "lab")
            assert code == 0
            assert "  2 x a: server error, last " in out
            code, out, _ = await call(capsys, *where, "errors", "lab", "--json")
            assert [json.loads(text)["type"] for text in out.splitlines()] == ["error", "error", "alike"]
            code, _, error = await call(capsys, *where, "errors", "lab", "--status", "9")
            assert code == 64

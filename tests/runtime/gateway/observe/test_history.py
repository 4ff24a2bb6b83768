"""Past requests and errors, which outlive the gateway."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.gateway.attempt import Made
from runtime.gateway.observe import history_file
from runtime.gateway.observe.history import History
from runtime.gateway.observe.history_file import HistoryFile, Wanted
from runtime.gateway.observe.past import as_csv, errors_of, request_of
from runtime.gateway.observe.receipts import Entry
from runtime.gateway.routing.select import Skipped
from schemas.history import PastError, PastRequest
from tests.fakes.upstream import FakeUpstream, answers, refuses
from tests.runtime.gateway.harness import CHAT, STREAM, Conf, GatewayProcess, stack_document

GOOD = Made("a", 101.0, 101.5, 103.5, "ok")
BAD = Made("b", 100.0, None, 101.0, "refused", "refused: nobody listens")


def entry(number: int = 1, *made: Made, outcome: str = "ok", **more: Any) -> Entry:
    known = {"role": "chat", "status": 200, "tokens": 8, "skipped": (), "model": "gpt"} | more
    return Entry(
        id=f"req-{number}", at=1000.0 + number, began_at=100.0, ended_at=104.0, model=known["model"],
        route=known["role"], path="/v1/chat/completions", is_stream=True, endpoint=made[-1].endpoint if made else "",
        fallback="", outcome=outcome, made=made, skipped=known["skipped"], generation=1, revision=None,
        status=known["status"], tokens=known["tokens"],
    )  # fmt: skip


def test_a_request_is_told_with_its_way_its_times_and_its_pace() -> None:
    row = request_of(entry(1, BAD, GOOD))
    assert (row.attempts, row.endpoint, row.status, row.tokens) == (("b", "a"), "a", 200, 8)
    assert (row.first_s, row.took_s, row.tokens_per_s) == (1.5, 4.0, 4.0)
    left = request_of(entry(1, outcome="client left", status=0, tokens=0))
    assert (left.status, left.tokens, left.first_s, left.tokens_per_s) == (None, None, None, None)


def test_errors_are_the_attempts_that_failed_also_where_another_one_helped() -> None:
    (error,) = errors_of(entry(1, BAD, GOOD))
    assert (error.endpoint, error.outcome, error.error, error.status) == (
        "b",
        "refused",
        "refused: nobody listens",
        200,
    )
    assert error.at == 1002.0
    assert not list(errors_of(entry(1, GOOD)))
    assert not list(errors_of(entry(1, outcome="client left")))
    loading = Made("a", 100.0, None, 100.1, "loading", "loading (status 503)")
    assert not list(errors_of(entry(1, loading, GOOD))), "it only had to be brought into memory"
    (error,) = errors_of(entry(1, loading, outcome="unavailable", status=503))
    assert (error.outcome, error.error) == ("unavailable", "loading (status 503)")
    nobody = entry(1, outcome="unavailable", status=503, skipped=(Skipped("a", "open"), Skipped("b", "isolated")))
    (error,) = errors_of(nobody)
    assert (error.outcome, error.error, error.status) == ("unavailable", "a: open; b: isolated", 503)


def test_values_in_a_table_are_no_formulas() -> None:
    text = as_csv(PastRequest, [request_of(entry(1, BAD, GOOD, model='=cmd|"x",1'))])
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["model"], row["attempts"], row["status"], row["fallback"]) == ('\'=cmd|"x",1', "b > a", "200", "")
    assert as_csv(PastError, []).strip().split(",")[0] == "request"


def kept(file: HistoryFile, *entries: Entry) -> HistoryFile:
    file.write([request_of(one) for one in entries], [error for one in entries for error in errors_of(one)])
    return file


def test_the_file_keeps_the_newest_and_finds_by_role_and_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "KEPT_REQUESTS", 3)
    path = tmp_path / "gateway" / "history.sqlite3"
    file = kept(HistoryFile(path), *(entry(number, GOOD) for number in range(5)))
    assert [one.id for one in file.requests(Wanted(10))] == ["req-4", "req-3", "req-2"]
    kept(file, entry(7, BAD, outcome="refused", status=503, role="other"), entry(8, BAD, GOOD))
    assert [one.id for one in file.requests(Wanted(10, role="other"))] == ["req-7"]
    assert [one.id for one in file.requests(Wanted(10, status=200))] == ["req-8", "req-4"]
    assert [one.request for one in file.errors(Wanted(1))] == ["req-8"]
    assert [(group.endpoint, group.outcome, group.count) for group in file.groups(Wanted(1))] == [("b", "refused", 2)]
    assert file.groups(Wanted(1, role="other"))[0].count == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = HistoryFile(path)
    kept(second, entry(9, GOOD))
    assert file.requests(Wanted(1))[0].id == "req-9", "the process that takes over uses the same file"
    second.close()
    file.close()
    assert HistoryFile(path).requests(Wanted(1))[0].id == "req-9"


@pytest.mark.parametrize("damage", [b"no database at all, but text" * 50, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_begins_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "history.sqlite3"
    path.write_bytes(damage)
    assert kept(HistoryFile(path), entry(1, GOOD)).requests(Wanted(5))[0].id == "req-1"
    assert HistoryFile(path).requests(Wanted(5))[0].id == "req-1", "it is kept"
    assert (tmp_path / "history.sqlite3.aside").read_bytes() == damage


@pytest.mark.parametrize("version", [0, 99])
def test_gateways_that_open_a_file_at_once_share_it(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "BUSY_S", 60.0)  # whatever the disk is busy with
    path = tmp_path / "history.sqlite3"
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
    begin = threading.Barrier(8)

    def opens(number: int) -> None:
        begin.wait(60.0)
        file = kept(HistoryFile(path), entry(number, GOOD))
        file.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(opens, range(8)))
    assert sorted(one.id for one in HistoryFile(path).requests(Wanted(20))) == [f"req-{number}" for number in range(8)]


def test_a_locked_file_is_left_alone_and_used_as_soon_as_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_file, "BUSY_S", 0.01)
    monkeypatch.setattr(history_file, "RETRY_S", 0.0)
    path = tmp_path / "history.sqlite3"
    kept(HistoryFile(path), entry(1, BAD, GOOD)).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN EXCLUSIVE")
    file = kept(HistoryFile(path), entry(2, BAD, GOOD))
    assert [one.id for one in file.requests(Wanted(5))] == ["req-2"], "nothing is lost meanwhile"
    other.execute("COMMIT")
    other.close()
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    kept(file, entry(3, GOOD))
    file.close()
    again = HistoryFile(path)
    assert [one.id for one in again.requests(Wanted(5))] == ["req-3", "req-2", "req-1"]
    assert [one.request for one in again.errors(Wanted(5))] == ["req-2", "req-1"]


def test_a_file_of_another_version_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert kept(HistoryFile(path), entry(1, GOOD)).requests(Wanted(5))[0].id == "req-1"


async def test_where_no_file_can_be_written_it_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    for path in (None, tmp_path / "taken" / "history.sqlite3"):
        history = History(path)
        history.add(entry(1, BAD, GOOD))
        assert [one.id for one in (await history.requests(Wanted(5))).requests] == ["req-1"]
        assert [one.request for one in (await history.errors(Wanted(5))).errors] == ["req-1"]
        history.close()


async def test_what_waits_is_written_when_the_gateway_ends(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    history = History(path)
    history.start()
    for number in range(3):
        history.add(entry(number, GOOD))
    history.close()
    assert len(HistoryFile(path).requests(Wanted(5))) == 3


async def test_the_last_requests_and_errors_are_told(lab: Any) -> None:
    gateway, _ = await lab(refuses(500), answers())
    async with gateway.client() as client:
        done = await client.post("/v1/chat/completions", json=CHAT)
        streamed = await client.post("/v1/chat/completions", json=STREAM)
        assert (done.status_code, streamed.status_code) == (200, 200)
        rows = (await client.get("/requests")).json()["requests"]
        assert [row["id"] for row in rows] == [
            answer.headers["x-orchestrate-request-id"] for answer in (streamed, done)
        ]
        assert rows[1]["attempts"] == ["a", "b"] and rows[1]["status"] == 200 and rows[1]["tokens"] == 5
        assert rows[0]["first_s"] > 0
        errors = (await client.get("/errors")).json()
        assert {error["endpoint"] for error in errors["errors"]} == {"a"}
        assert errors["groups"][0]["count"] == len(errors["errors"])
        assert (await client.get("/requests?limit=1&role=chat&status=200")).json()["requests"] == rows[:1]
        assert (await client.get("/requests?status=503")).json()["requests"] == []
        table = await client.get("/requests?format=csv")
        assert table.headers["content-type"].startswith("text/csv")
        assert len(list(csv.DictReader(io.StringIO(table.text)))) == 2
        assert (await client.get("/errors?format=csv")).text.startswith("request,at,role,endpoint")
        for query in ("limit=0", "limit=x", "status=99", "format=xml", "limit=1&limit=2", f"role={'x' * 300}"):
            answer = await client.get(f"/requests?{query}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value"), query


async def test_history_outlives_a_gateway_that_is_killed(tmp_path: Path) -> None:
    conf = Conf(tmp_path)
    async with FakeUpstream() as fake:
        conf.write_stack(stack_document({"a": fake.url}))
        gateway = await GatewayProcess(conf).start()
        async with gateway.client() as client:
            answer = await client.post("/v1/chat/completions", json=CHAT)
            wanted = answer.headers["x-orchestrate-request-id"]
            assert [row["id"] for row in (await client.get("/requests")).json()["requests"]] == [wanted]
        await gateway.stop()
        again = await GatewayProcess(conf, gateway.port).start()
        try:
            async with again.client() as client:
                rows = json.loads((await client.get("/requests")).content)["requests"]
                assert [row["id"] for row in rows] == [wanted]
        finally:
            await again.stop()

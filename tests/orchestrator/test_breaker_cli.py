"""`orchestrate breaker` against a gateway that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.breakers import breaker_words, endpoint_lines
from schemas.admin import BreakerReport, EndpointStatistics, Spread
from tests.fakes.upstream import FakeUpstream, answers, refuses
from tests.orchestrator.program import call
from tests.ports import free_port
from tests.runtime.gateway.harness import CHAT, Conf, gateway_process, stack_document

WELL = EndpointStatistics(
    endpoint="main",
    role="chat",
    instance="10.0.0.5:8000",
    roles=("chat/main", "code/main"),
    model="m",
    health="ready",
    breaker=BreakerReport(state="closed"),
    in_flight=2,
    answers=9,
    failures=1,
    latency_s=Spread(p50=0.8, p95=2.25),
    tokens_per_s=31.25,
    last_success_age_s=4.0,
    last_error="server error (status 500)",
    last_error_age_s=7200.0,
)


@pytest.mark.parametrize(
    ("breaker", "expected"),
    [
        (BreakerReport(state="closed"), "closed"),
        (BreakerReport(state="closed", failures=1), "closed, 1 failure in a row"),
        (BreakerReport(state="closed", failures=2), "closed, 2 failures in a row"),
        (BreakerReport(state="open", retry_s=90.0), "open, next trial in 2 min"),
        (BreakerReport(state="open", retry_s=0.0), "open, trial due"),
        (BreakerReport(state="half-open", retry_s=9.0), "half-open, a trial is on its way"),
        (BreakerReport(state="half-open", retry_s=0.0), "half-open, trial due"),
        (BreakerReport(state="isolated"), "isolated"),
    ],
)
def test_a_breaker_is_told_in_a_few_words(breaker: BreakerReport, expected: str) -> None:
    assert breaker_words(breaker) == expected


def test_endpoints_are_a_table() -> None:
    never = WELL.model_copy(update={"roles": (), "latency_s": None, "tokens_per_s": None, "last_success_age_s": None})
    head, first, second = endpoint_lines([WELL, never.model_copy(update={"last_error": None})])
    assert head.split()[:3] == ["ENDPOINT", "AT", "HEALTH"]
    words = first.split("  ")
    assert [word.strip() for word in words if word] == [
        "chat/main, code/main",
        "10.0.0.5:8000",
        "ready",
        "closed",
        "2",
        "0.80/2.25 s",
        "31.2",
        "4 s ago",
        "server error (status 500), 2 h ago",
    ]
    assert second.split() == ["main", "10.0.0.5:8000", "ready", "closed", "2", "-", "-", "never"]


def test_who_fails_its_checks_is_told_from_who_gets_requests() -> None:
    once, twice = (WELL.model_copy(update={"failed_checks": failed}) for failed in (1, 2))
    _, first, second = endpoint_lines([once, twice])
    assert "closed, unready: 1 check failed" in first
    assert "closed, unready: 2 checks failed" in second


@pytest.mark.slow
async def test_endpoints_are_listed_isolated_closed_and_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "orchestrate"))
    monkeypatch.delenv("ORCHESTRATE_CONF", raising=False)
    port = free_port()
    conf = Conf(tmp_path)
    where = ("--conf", str(conf.root))
    async with FakeUpstream() as first, FakeUpstream() as second:
        document = stack_document(
            {"a": first.url, "b": second.url}, chat={"breaker": {"failure_threshold": 1}}, gateway={"port": port}
        )
        conf.write_stack(document)
        code, _, error = await call(capsys, *where, "breaker", "list", "lab")
        assert code == 1
        assert "does not answer" in error
        async with gateway_process(conf, port=port) as gateway, gateway.client() as client:

            async def who() -> str:
                answer = await client.post("/v1/chat/completions", json=CHAT)
                return str(answer.headers.get("x-orchestrate-endpoint", answer.status_code))

            assert await who() == "a"
            code, out, _ = await call(capsys, *where, "breaker", "isolate", "lab", "a")
            assert (code, out) == (0, f"chat/a at 127.0.0.1:{first.port}: isolated, ready\n")
            assert await who() == "b"
            code, out, _ = await call(capsys, *where, "breaker", "list", "lab", "--history")
            assert code == 0
            assert "isolated (by hand)" in out
            code, out, _ = await call(capsys, *where, "breaker", "close", "lab", "chat/a")
            assert (code, out) == (0, f"chat/a at 127.0.0.1:{first.port}: closed, ready\n")
            assert await who() == "a"
            first.behave = refuses(500)
            assert await who() == "b"
            code, out, _ = await call(capsys, *where, "breaker", "probe", "lab", "a", "--role", "chat")
            assert code == 1
            assert "no answer: server error; open, next trial in " in out
            first.behave = answers()
            code, out, _ = await call(capsys, *where, "breaker", "probe", "lab", "a", "--json")
            line: dict[str, Any] = json.loads(out)
            assert code == 0
            assert (line["type"], line["endpoint"], line["breaker"]["state"]) == ("endpoint", "a", "closed")
            code, out, _ = await call(capsys, *where, "breaker", "list", "lab", "--json")
            assert [json.loads(text)["endpoint"] for text in out.splitlines()] == ["a", "b"]
            code, _, error = await call(capsys, *where, "breaker", "isolate", "lab", "aa")
            assert code == 1
            assert "did you mean 'a'?" in error
            code, _, error = await call(capsys, *where, "breaker", "close", "lab")
            assert code == 64
            assert "ENDPOINT" in error

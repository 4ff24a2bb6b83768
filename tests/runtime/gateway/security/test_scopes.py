"""Every route against every kind of key."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sanic import Request, text
from sanic.response import HTTPResponse

from runtime.gateway.security.admission import GuardedApp
from runtime.gateway.security.guard import Guard
from runtime.gateway.security.scopes import NEEDS, UnscopedRouteError
from tests.runtime.gateway.harness import CHAT, STREAM
from tests.runtime.gateway.security.conftest import Keyed

MODELS = ("/v1/", "/v2/", "/rerank", "/api/", "/openapi.json")
ALLOWED = {
    "open": {"none", "inference", "metrics", "read", "admin", "own", "expired", "wrong", "two"},
    "inference": {"inference", "admin", "own"},
    "metrics": {"metrics", "read", "admin", "own"},
    "read": {"read", "admin", "own"},
    "admin": {"admin", "own"},
}
MANAGED = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/")
"""Refused to everybody, but those whose key is good hear why."""
REFUSED = {"none": 401, "wrong": 401, "expired": 401, "two": 400}
"""What is answered to each who is not let in; 403 to those whose key is good."""


def need(method: str, path: str) -> str:
    """Say by the path alone what it should ask for: an oracle apart from the table."""
    if path in ("/", "/health", "/ready", "/api/version"):
        return "open"
    if path == "/metrics":
        return "metrics"
    if path.startswith(MODELS):
        return "inference"
    return "read" if method == "GET" else "admin"


def is_of_two_credentials(answer: httpx.Response, kind: str) -> bool:
    """Tell whether two keys were refused; an answer to HEAD does not say why."""
    said = kind == "two" if answer.request.method == "HEAD" else "two different credentials" in answer.text
    return answer.status_code == 400 and said


def shape_of(document: dict[str, Any]) -> set[str]:
    """Return the keys of an error, those inside it where it is an object."""
    error = document["error"]
    return set(error) if isinstance(error, dict) else {"text"}


def expected_shape(path: str) -> set[str]:
    """Say by the path alone which shape an error has."""
    if path.startswith("/api/"):
        return {"text"}
    return {"type", "message"} if path.startswith("/v1/messages") else {"message", "type", "param", "code"}


async def test_every_route_lets_in_whom_it_should_and_nobody_else(keyed: Keyed) -> None:
    gateway = keyed.gateway
    routes = {(m, "/" + r.path.lstrip("/")) for r in gateway.gateway.app.router.routes for m in r.methods}
    assert routes <= set(NEEDS), "a route that nobody has decided about"
    good = {kind: key.text for kind, key in keyed.made.items() if kind != "limited"} | {"own": gateway.token}
    senders: dict[str, dict[str, str]] = {kind: {"authorization": f"Bearer {key}"} for kind, key in good.items()}
    senders |= {"none": {}, "wrong": {"x-api-key": "sk-orc-nobody"}}
    senders["two"] = {"authorization": f"Bearer {good['admin']}", "x-api-key": str(good["read"])}
    async with gateway.client() as client:
        for method, path in sorted(routes):
            has_id = "<request_id" in path or "<digest" in path
            called = path.replace("<name:path>", "chat").split("<")[0] + ("x" if has_id else "")
            for kind, headers in senders.items():
                answer = await client.request(method, called, headers=headers, content=b"{}")
                place = f"{method} {path} with {kind}: {answer.status_code} {answer.text[:200]}"
                is_admitted = kind in ALLOWED[need(method, path)]
                if is_admitted and path.startswith(MANAGED):
                    assert answer.status_code == 403, place
                    assert method == "HEAD" or "managed by the stack files" in answer.text, place
                    continue
                is_refused = answer.status_code in (401, 403) or is_of_two_credentials(answer, kind)
                assert is_refused == (not is_admitted), place
                if is_refused:
                    assert answer.status_code == REFUSED.get(kind, 403), place
                    assert method == "HEAD" or shape_of(answer.json()) == expected_shape(path), place
                    assert "managed" not in answer.text, place
                    assert ("www-authenticate" in answer.headers) == (answer.status_code == 401), place


async def test_what_is_open_shows_no_more_than_that_it_serves(keyed: Keyed) -> None:
    async with keyed.gateway.client() as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).json() == {"ready": True}
        wrong = await client.get("/ready", headers={"authorization": "Basic x", "x-api-key": "y"})
        assert wrong.json() == {"ready": True}
        assert "roles" in (await client.get("/ready", headers=keyed.bearer("read"))).json()
        assert "roles" not in (await client.get("/ready", headers=keyed.bearer("metrics"))).json()


def test_a_route_without_a_scope_does_not_start() -> None:
    async def handler(_: Request) -> HTTPResponse:
        return text("")

    def app(name: str) -> GuardedApp:
        return GuardedApp(name, Guard("127.0.0.1", lambda: 0.0, lambda: 0.0))

    with pytest.raises(UnscopedRouteError, match="GET /nobody/has/decided has no scope"):
        app("first").add_route(handler, "/nobody/has/decided")
    sly = app("second")
    sly.route("/metrics", name="past the guard")(handler)
    with pytest.raises(UnscopedRouteError):
        sly.require_scopes()


async def test_a_key_for_some_names_sees_and_uses_no_others(keyed: Keyed) -> None:
    headers = keyed.bearer("limited")
    async with keyed.gateway.client() as client:
        listed = (await client.get("/v1/models", headers=headers)).json()["data"]
        assert [card["id"] for card in listed] == ["chat"]
        assert (await client.get("/v1/models/chat", headers=headers)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
        for name in ("gpt-4o-mini", "model-a", "a", "there-is-no-such"):
            answers = [
                await client.get(f"/v1/models/{name}", headers=headers),
                await client.post("/v1/chat/completions", json={**CHAT, "model": name}, headers=headers),
                await client.post("/v1/embeddings", json={"model": name, "input": "x"}, headers=headers),
            ]
            for answer in answers:
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
                assert answer.text == answers[0].text, "whether it exists makes no difference"
        everything = (await client.get("/v1/models", headers=keyed.bearer("inference"))).json()["data"]
        assert {card["id"] for card in everything} == {"chat", "gpt-4o-mini", "model-a"}
    assert len(keyed.fake.seen) == 1


async def test_a_key_has_its_requests_a_minute_for_models_only(keyed: Keyed) -> None:
    key = keyed.keys.add(("inference",), rpm=2)
    await keyed.gateway.reload()
    headers = {"x-api-key": key.text}
    async with keyed.gateway.client() as client:
        for _ in range(4):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        for body in (CHAT, STREAM):
            assert (await client.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        other = await client.post("/v1/chat/completions", json=CHAT, headers=keyed.bearer("inference"))
        assert other.status_code == 200
    assert len(keyed.fake.seen) == 3


async def test_no_credential_of_a_client_reaches_an_endpoint(keyed: Keyed) -> None:
    async with keyed.gateway.client() as client:
        await client.post("/v1/chat/completions", json=CHAT, headers=keyed.bearer("inference") | {"cookie": "a=b"})
    assert set(keyed.fake.seen[0].headers) == {
        *("host", "content-type", "accept", "accept-encoding", "content-length", "x-request-id")
    }

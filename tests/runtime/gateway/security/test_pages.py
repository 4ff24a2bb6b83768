"""What browsers do for pages of other sites: names that were pointed here, requests across sites, and CORS."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tests.runtime.gateway.harness import CHAT, LocalGateway
from tests.runtime.gateway.security.conftest import Keyed

PATH = "/v1/chat/completions"
LISTED = "https://chat.lan"


async def raw(gateway: LocalGateway, data: bytes) -> bytes:
    """Send bytes and read until the gateway closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


def get(host: str, path: str = "/health") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()


@pytest.mark.parametrize("is_keyed", [False, True])
async def test_a_name_that_is_not_the_gateways_is_421_on_every_path(lab: Any, keyed: Keyed, is_keyed: bool) -> None:
    gateway = keyed.gateway if is_keyed else (await lab(None))[0]
    names = ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example")
    for name in (*names, "2130706433", "0x7f000001", "127.1", "localhost."):
        for path in ("/health", "/ready", "/v1/models", "/admin/config", "/there/is/no/such"):
            answer = await raw(gateway, get(name, path) + get("localhost", "/admin/config"))
            assert answer.startswith(b"HTTP/1.1 421 Misdirected Request\r\n"), (name, path, answer)
            assert b'"unknown_host"' in answer
            assert answer.count(b"HTTP/1.1 ") == 1, "the connection ends with it"
            assert name.encode() not in answer.partition(b"\r\n\r\n")[2]


async def test_the_gateways_own_names_and_listed_ones_are_good(lab: Any) -> None:
    gateway, _ = await lab(None, gateway={"hosts": ["chat.lan"]})
    loopback = ("localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{gateway.port}", "[::1]:80")
    own = socket.gethostname()
    for name in (
        *loopback,
        "host.docker.internal",
        "here",
        "Chat.LAN",
        "10.9.8.7:1",
        "[fd00::2]",
        own,
        own.partition(".")[0],
    ):
        assert (await raw(gateway, get(name))).startswith(b"HTTP/1.1 200 "), name
    assert (await raw(gateway, b"GET /health HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({}, True),
        ({"origin": LISTED}, True),
        ({"origin": LISTED, "sec-fetch-site": "cross-site"}, True),
        ({"origin": "http://{own}"}, True),
        ({"origin": "https://{own}", "sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "https://chat.lan.evil.example"}, False),
        ({"origin": "http://chat.lan"}, False),
        ({"origin": "{own}"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "nonsense"}, False),
        ({"origin": "http://{own}", "sec-fetch-site": "cross-site"}, False),
    ],
)
async def test_pages_of_other_sites_may_not_change_anything_or_listen(
    lab: Any, headers: dict[str, str], is_let_in: bool
) -> None:
    gateway, (fake,) = await lab(None, gateway={"origins": [LISTED]})
    sent = {name: value.format(own=f"127.0.0.1:{gateway.port}") for name, value in headers.items()}
    async with gateway.client() as client:
        is_listed = headers.get("origin") == LISTED
        for answer in (
            await client.post(PATH, json=CHAT, headers=sent),
            await client.post("/admin/config/reload", headers=sent),
            await client.get("/v1/models", headers=sent | {"accept": "text/event-stream"}),
        ):
            if is_listed and answer.url.path.startswith("/admin/"):
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
                continue
            assert (answer.status_code == 200) == is_let_in, answer.text
            assert is_let_in or answer.json()["error"]["code"] == "cross_origin"
            shown = answer.headers.get("access-control-allow-origin")
            assert shown == (LISTED if is_listed else None)
    assert len(fake.seen) == is_let_in


async def test_a_listed_page_is_not_the_machine_that_shows_it(lab: Any) -> None:
    gateway, _ = await lab(None, gateway={"origins": [LISTED]})
    async with gateway.client() as client:
        for path in ("/admin/config", "/admin/receipts"):
            assert (await client.get(path)).status_code == 200
            assert (await client.get(path, headers={"origin": LISTED})).status_code == 401
        assert "roles" in (await client.get("/ready")).json()
        assert (await client.get("/ready", headers={"origin": LISTED})).json() == {"ready": True}


async def test_a_preflight_is_answered_for_listed_pages_only(lab: Any) -> None:
    gateway, _ = await lab(None, gateway={"origins": [LISTED]})
    wish = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with gateway.client() as client:
        good = await client.options(PATH, headers=wish | {"origin": LISTED})
        assert (good.status_code, good.headers["access-control-allow-origin"]) == (204, LISTED)
        assert "authorization" in good.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in good.headers
        assert good.headers["vary"] == "origin, access-control-request-headers"
        for asked in (
            "authorization,content-type,x-stainless-os,x-stainless-retry-count",
            "anthropic-version, x-api-key",
        ):
            good = await client.options(
                PATH, headers=wish | {"origin": LISTED, "access-control-request-headers": asked}
            )
            assert good.headers["access-control-allow-headers"] == asked
        for asked in ("", "a b", "x,", "*", "a;b"):
            good = await client.options(
                PATH, headers=wish | {"origin": LISTED, "access-control-request-headers": asked}
            )
            assert good.headers["access-control-allow-headers"].startswith("authorization, content-type")
        for headers in (wish | {"origin": "https://evil.example"}, {"origin": LISTED}, wish):
            answer = await client.options(PATH, headers=headers)
            assert answer.status_code == 405
            assert not [name for name in answer.headers if name == "access-control-allow-methods"]


async def test_a_key_does_not_make_up_for_a_page_of_another_site(keyed: Keyed) -> None:
    async with keyed.gateway.client() as client:
        headers = keyed.bearer("admin") | {"origin": "https://evil.example"}
        assert (await client.post(PATH, json=CHAT, headers=headers)).status_code == 403
    assert keyed.fake.seen == []

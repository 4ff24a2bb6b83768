"""Who may use the admin API."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from runtime.gateway.security.rules import is_this_machine
from tests.fakes.upstream import FakeUpstream
from tests.runtime.gateway.harness import CHAT, LocalGateway, stack_document

PATHS = [("GET", "/admin/config"), ("POST", "/admin/config/reload")]


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (("127.0.0.1", 5), True),
        (("127.9.9.9", 5), True),
        (("::1", 5, 0, 0), True),
        (("::ffff:127.0.0.1", 5, 0, 0), True),
        (("::ffff:10.0.0.1", 5, 0, 0), False),
        (("10.0.0.1", 5), False),
        (("fe80::1%eth0", 5, 0, 2), False),
        (("0.0.0.0", 5), False),
        (("localhost", 5), False),
        (("", 5), False),
        ((), False),
        ("", False),
        (None, False),
    ],
)
def test_this_machine_is_known_by_the_sockets_peer(peer: object, expected: bool) -> None:
    assert is_this_machine(peer) == expected


def own_address() -> str | None:
    """Return an address of this machine that is no loopback one; nothing is sent for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return None
        found: str = sock.getsockname()[0]
    return None if found.startswith(("127.", "0.")) else found


@pytest.fixture
async def from_afar(tmp_path: Path) -> AsyncIterator[tuple[LocalGateway, httpx.AsyncClient]]:
    """A gateway on an address of the network, asked from there, as another machine would ask."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    async with FakeUpstream() as fake:
        gateway = LocalGateway(stack_document({"a": fake.url}, gateway={"auth": "none", "exposed": "accepted"}))
        gateway.host = address
        await gateway.start(tmp_path)
        async with gateway.client() as client:
            yield gateway, client
        await gateway.stop()


FromAfar = tuple[LocalGateway, httpx.AsyncClient]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer")],
        [("authorization", "Bearer admin-toke")],
        [("authorization", "Bearer admin-token2")],
        [("authorization", "Bearer \xe4dmin-token")],
        [("authorization", "admin-token")],
        [("authorization", "Basic admin-token")],
        [("authorization", "Bearer worker-token")],
        [("x-api-key", "admin-token"), ("authorization", "Bearer other")],
        [("authorization", "Bearer admin-token"), ("authorization", "Bearer other")],
        [("x-forwarded-for", "127.0.0.1"), ("forwarded", "for=127.0.0.1"), ("x-real-ip", "127.0.0.1")],
        [("host", "localhost")],
    ],
)
async def test_another_machine_without_the_token_is_refused(
    from_afar: FromAfar, method: str, path: str, headers: list[tuple[str, str]]
) -> None:
    _, client = from_afar
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    answer = await client.request(method, path, headers=raw)
    assert answer.status_code in (400, 401), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "admin-token" not in answer.text and "endpoints" not in answer.text


async def test_another_machine_with_the_token_is_let_in(from_afar: FromAfar) -> None:
    _, client = from_afar
    for method, path in PATHS:
        for scheme in ("Bearer", "bearer"):
            answer = await client.request(method, path, headers={"authorization": f"{scheme} admin-token"})
            assert answer.status_code == 200
            assert answer.json()["stack"] == "lab"
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200, "clients need none"


async def test_this_machine_needs_no_token(lab: object) -> None:
    gateway, _ = await lab()  # type: ignore[operator]
    async with gateway.client() as client:
        for method, path in PATHS:
            assert (await client.request(method, path)).status_code == 200
            wrong = await client.request(method, path, headers={"authorization": "Bearer nonsense"})
            assert wrong.status_code == 200


async def test_without_a_token_nobody_from_afar_is_let_in(tmp_path: Path) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    async with FakeUpstream() as fake:
        gateway = LocalGateway(stack_document({"a": fake.url}, gateway={"auth": "none", "exposed": "accepted"}))
        gateway.host, gateway.token = address, None
        await gateway.start(tmp_path)
        async with gateway.client() as client:
            for token in ("x", "None", "null"):
                answer = await client.get("/admin/config", headers={"authorization": f"Bearer {token}"})
                assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
        await gateway.stop()

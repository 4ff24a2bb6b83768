"""The HTTP client: reuse, stale connections, framings, limits, TLS."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.gateway import connections
from runtime.gateway.connections import Connections, Origin
from runtime.gateway.upstream import Connection, UpstreamError, tls_context
from tests.fakes.upstream import Exchange, FakeUpstream, answers, head, stalls
from tests.ports import free_port
from tests.runtime.gateway.harness import until

REQUEST = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
BODY = b"{}"


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connections]:
    """Connections that are kept for as long as a test takes on any machine."""
    monkeypatch.setattr(connections, "IDLE_S", 60.0)
    found = Connections()
    yield found
    found.close()


def origin(fake: FakeUpstream, scheme: str = "http", host: str = "127.0.0.1") -> Origin:
    return Origin(scheme, host, fake.port)


def soon(seconds: float = 60.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def ask(pool: Connections, where: Origin, *, limit: int = 10_000_000) -> tuple[Connection, bytes]:
    """Make one whole exchange and give the connection back."""
    connection = await pool.take(where, 30.0)
    try:
        connection.send(REQUEST, BODY)
        await connection.wait_head(soon())
        return connection, await connection.read_all(limit, 30.0)
    finally:
        pool.give_back(where, connection)


def says(*pieces: bytes, hangs_up: bool = False) -> object:
    """Answer with exactly these bytes, one write each."""

    async def behave(exchange: Exchange) -> None:
        for piece in pieces:
            await exchange.raw(piece)
            await asyncio.sleep(0.002)
        if hangs_up:
            exchange.hang_up()

    return behave


def sized(body: bytes, **more: str) -> bytes:
    return head(200, {"content_length": str(len(body)), **more}) + body


CHUNKED = head(200, {"transfer_encoding": "chunked"})


@pytest.mark.parametrize(
    ("pieces", "hangs_up", "body", "is_reused"),
    [
        ((sized(b"hello"),), False, b"hello", True),
        ((sized(b""),), False, b"", True),
        (tuple(bytes([byte]) for byte in sized(b"slow")), False, b"slow", True),
        ((CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",), False, b"hello", True),
        ((CHUNKED, b"2\r\nhe", b"\r\n3;ext=1\r\nllo\r\n", b"0\r\nx-trailer: 1\r\n\r\n"), False, b"hello", True),
        ((head(200, {}) + b"until the", b" end"), True, b"until the end", False),
        ((sized(b"bye", connection="close"),), False, b"bye", False),
        ((b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",), False, b"hi", False),
        ((b"HTTP/1.1 100 Continue\r\nx: 1\r\n\r\n", sized(b"after")), False, b"after", True),
        ((b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + sized(b"ok"),), False, b"ok", True),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), False, b"", True),
        ((sized(b"one") + sized(b"two"),), False, b"one", False),
    ],
)
async def test_every_framing_is_read_to_its_end(
    pool: Connections, pieces: tuple[bytes, ...], hangs_up: bool, body: bytes, is_reused: bool
) -> None:
    async with FakeUpstream(says(*pieces, hangs_up=hangs_up)) as fake:
        _, found = await ask(pool, origin(fake))
        assert found == body
        await ask(pool, origin(fake))
        assert fake.connections == (1 if is_reused else 2)


async def test_unread_answers_are_never_left_on_a_connection(pool: Connections) -> None:
    async with FakeUpstream(says(sized(b"x" * 100_000))) as fake:
        connection = await pool.take(origin(fake), 30.0)
        connection.send(REQUEST, BODY)
        await connection.wait_head(soon())
        pool.give_back(origin(fake), connection)
        await ask(pool, origin(fake))
        assert fake.connections == 2


async def test_bytes_that_nobody_asked_for_end_an_idle_connection(pool: Connections) -> None:
    async with FakeUpstream() as fake:
        first, _ = await ask(pool, origin(fake))
        next(iter(fake.open_connections)).write(sized(b"surprise"))
        await until(lambda: not first.is_usable)
        await ask(pool, origin(fake))
        assert fake.connections == 2


async def test_idle_connections_end_with_their_time(pool: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_S", 0.05)
    async with FakeUpstream() as fake:
        first, _ = await ask(pool, origin(fake))
        await until(lambda: not first.is_usable)
        await until(lambda: not fake.open_connections)


async def test_an_old_connection_is_not_kept_so_that_names_are_resolved_anew(
    pool: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "LONGEST_AGE_S", -1.0)
    async with FakeUpstream() as fake:
        where = origin(fake, host="localhost")
        await ask(pool, where)
        await ask(pool, where)
        assert fake.connections == 2


async def test_connections_in_use_are_limited(pool: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_IN_USE", 2)
    async with FakeUpstream(stalls) as fake:
        taken = [await pool.take(origin(fake), 30.0) for _ in range(2)]
        with pytest.raises(UpstreamError, match="connection limit"):
            await pool.take(origin(fake), 30.0)
        pool.give_back(origin(fake), taken[0])
        pool.give_back(origin(fake), await pool.take(origin(fake), 30.0))
        pool.give_back(origin(fake), taken[1])


async def test_a_refused_connection_gives_its_place_back(pool: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_IN_USE", 1)
    where = Origin("http", "127.0.0.1", free_port())
    for _ in range(3):
        with pytest.raises(UpstreamError) as caught:
            await pool.take(where, 30.0)
        assert caught.value.fault == "refused"


async def test_an_unknown_name_is_told_apart(pool: Connections) -> None:
    with pytest.raises(UpstreamError) as caught:
        await pool.take(Origin("http", "no-such-host.invalid", 80), 10.0)
    assert caught.value.fault in {"name not found", "connect timeout"}


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",), "bad answer"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",), "bad answer"),
        ((b"HTTP/9.9 200 OK\r\n\r\n",), "bad answer"),
        ((CHUNKED + b"zz\r\n",), "bad answer"),
        ((head(200, {"content_length": "10"}) + b"half",), "ended early"),
        ((CHUNKED + b"5\r\nhel",), "ended early"),
        ((), "reset"),
    ],
)
async def test_broken_answers_are_faults(pool: Connections, pieces: tuple[bytes, ...], fault: str) -> None:
    async with FakeUpstream(says(*pieces, hangs_up=True)) as fake:
        with pytest.raises(UpstreamError) as caught:
            await ask(pool, origin(fake))
        assert caught.value.fault == fault


async def test_a_body_has_a_limit(pool: Connections) -> None:
    async with FakeUpstream(says(sized(b"x" * 5000))) as fake:
        with pytest.raises(UpstreamError, match="more than 4999 bytes"):
            await ask(pool, origin(fake), limit=4999)


async def test_deadlines_are_kept_and_the_wake_up_is_not_one(pool: Connections) -> None:
    async with FakeUpstream(stalls) as fake:
        connection = await pool.take(origin(fake), 30.0)
        connection.send(REQUEST, BODY)
        assert await connection.wait_head(soon(), wake_at=soon(0.05)) is False
        with pytest.raises(UpstreamError) as caught:
            await connection.wait_head(soon(0.05))
        assert caught.value.fault == "no first content"
        pool.give_back(origin(fake), connection)


async def test_a_deadline_that_moves_away_is_not_kept_too_early(pool: Connections) -> None:
    """One timer serves all reads: where it is of an earlier one, the read that waits when it ends goes on."""
    gate = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await exchange.raw(head(200, {"content_length": "1"}))
        await gate.wait()
        await exchange.raw(b"x")

    async with FakeUpstream(late) as fake:
        connection = await pool.take(origin(fake), 30.0)
        connection.send(REQUEST, BODY)
        await connection.wait_head(soon())
        early = asyncio.create_task(connection.read(soon(0.2)))
        await asyncio.sleep(0)  # its timer is set
        early.cancel()
        await asyncio.wait([early])
        asyncio.get_running_loop().call_later(0.4, gate.set)
        assert await connection.read(soon()) == b"x"
        pool.give_back(origin(fake), connection)


async def test_a_reader_that_rests_holds_the_endpoint_back(pool: Connections) -> None:
    sent = 0

    async def firehose(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.raw(head(200, {"content_length": str(64_000_000)}))
        for _ in range(1000):
            await exchange.raw(b"x" * 64_000)
            sent += 64_000

    async with FakeUpstream(firehose) as fake:
        connection = await pool.take(origin(fake), 30.0)
        connection.send(REQUEST, BODY)
        await connection.wait_head(soon())
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.1)
        assert sent < 30_000_000
        size = 0
        while data := await connection.read(soon()):
            size += len(data)
        assert size == 64_000_000
        pool.give_back(origin(fake), connection)


async def test_large_request_bodies_arrive_whole(pool: Connections) -> None:
    body = bytes(range(256)) * 40_000
    async with FakeUpstream() as fake:
        connection = await pool.take(origin(fake), 30.0)
        fake.behave = says(sized(b"ok"))
        connection.send(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body), body)
        await connection.wait_head(soon())
        assert await connection.read_all(10, 30.0) == b"ok"
        assert fake.seen[0].body == body
        pool.give_back(origin(fake), connection)


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a certificate for `localhost` and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    files = ["-keyout", str(key), "-out", str(certificate), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return certificate, key


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


async def test_tls_endpoints_are_called_and_kept(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusting() -> ssl.SSLContext:
        context = tls_context()
        context.load_verify_locations(certificate[0])
        return context

    monkeypatch.setattr(connections, "IDLE_S", 60.0)
    pool = Connections(trusting)
    async with FakeUpstream(says(sized(b"secret")), tls=server_context(certificate)) as fake:
        for _ in range(2):
            _, body = await ask(pool, origin(fake, "https", "localhost"))
            assert body == b"secret"
        assert fake.connections == 1
        with pytest.raises(UpstreamError) as caught:
            await ask(pool, origin(fake, "https", "127.0.0.1"))
        assert caught.value.fault == "TLS error", "the certificate is for another name"
    pool.close()


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    pool: Connections, certificate: tuple[Path, Path]
) -> None:
    async with FakeUpstream(tls=server_context(certificate)) as fake:
        with pytest.raises(UpstreamError) as caught:
            await ask(pool, origin(fake, "https", "localhost"))
        assert caught.value.fault == "TLS error"


async def test_tls_to_a_plain_server_is_a_fault_and_no_hang(pool: Connections) -> None:
    async with FakeUpstream(answers()) as fake:
        with pytest.raises(UpstreamError) as caught:
            await pool.take(origin(fake, "https"), 1.0)
        assert caught.value.fault in {"TLS error", "connect timeout"}


@pytest.mark.parametrize(
    ("rest", "connections_made"),
    [
        (b"0\r\n\r\n", 1),
        (b"2\r\n\n\n\r\n0\r\n\r\n", 1),
        (b"nonsense\r\n\r\n", 2),
        (b"", 2),
    ],
)
async def test_an_answer_that_its_client_has_all_of_may_end_when_nobody_waits_for_it(
    pool: Connections, monkeypatch: pytest.MonkeyPatch, rest: bytes, connections_made: int
) -> None:
    told = asyncio.Event()
    if not rest:
        monkeypatch.setattr(connections, "END_S", 0.05)

    async def ends_late(exchange: Exchange) -> None:
        await exchange.raw(CHUNKED + b"5\r\nhello\r\n")
        await told.wait()
        await exchange.raw(rest)
        if not rest:
            await exchange.silence()

    async with FakeUpstream(ends_late) as fake:
        first = await pool.take(origin(fake), 30.0)
        first.send(REQUEST, BODY)
        await first.wait_head(soon())
        assert await first.read(soon()) == b"hello"
        first.tell()
        pool.give_back(origin(fake), first)
        assert first.is_ending
        told.set()
        await until(lambda: not first.is_ending, what="the answer is over")
        fake.behave = answers()
        await ask(pool, origin(fake))
        assert fake.connections == connections_made


async def test_what_still_ends_is_closed_with_the_rest(pool: Connections) -> None:
    async with FakeUpstream(says(CHUNKED + b"5\r\nhello\r\n")) as fake:
        connection = await pool.take(origin(fake), 30.0)
        connection.send(REQUEST, BODY)
        await connection.wait_head(soon())
        await connection.read(soon())
        connection.tell()
        pool.give_back(origin(fake), connection)
        pool.close()
        assert not connection.is_usable

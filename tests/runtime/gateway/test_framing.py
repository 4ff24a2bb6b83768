"""The strict reading of request heads."""

from __future__ import annotations

import pytest

from runtime.gateway.framing import find_fault

GOOD = [
    b"GET / HTTP/1.1\r\nHost: a",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Length: 33",
    b"GET /v1/models/a%2Fb:c?x=1 HTTP/1.1\r\nhost: [::1]:8000\r\nAccept: */*\r\nX-Empty:\r\nX: caf\xc3\xa9",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked",
    b"GET / HTTP/1.0",
]
BAD = [
    b"GET / HTTP/1.1",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: a",
    b"GET / HTTP/1.1\r\nHost: a/public?x=",
    b"GET / HTTP/1.1\r\nHost: a b",
    b"GET / HTTP/1.1\r\nHost:",
    b"GET / HTTP/1.1\r\nHost: user@a",
    b"GET http://other/ HTTP/1.1\r\nHost: a",
    b"GET  / HTTP/1.1\r\nHost: a",
    b"GET / HTTP/1.1 \r\nHost: a",
    b"GET / HTTP/2.0\r\nHost: a",
    b"GET /a\x00b HTTP/1.1\r\nHost: a",
    b"G(T / HTTP/1.1\r\nHost: a",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 33",
    b"POST / HTTP/1.1\r\nHost: a\r\n Content-Length: 33",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +33",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3_3",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x10",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ٣".encode(),
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x0bb",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nContent-Length: 5",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b",
    b"GET / HTTP/1.1\r\nHost: a\r\nno colon",
    b"GET / HTTP/1.1\r\nHost: a\r\n: empty",
    b"GET / HTTP/1.1\r\nHost: a\r\nna\xefme: x",
    b"GET / HTTP/1.1\nHost: a",
]


@pytest.mark.parametrize("head", GOOD)
def test_ordinary_heads_pass(head: bytes) -> None:
    assert find_fault(head) is None


@pytest.mark.parametrize("head", BAD)
def test_what_two_programs_may_read_differently_is_refused(head: bytes) -> None:
    assert find_fault(head)

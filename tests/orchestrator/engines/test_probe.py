"""I/O: what an engine's answer to the probe for a first token is taken for; the engine is a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from orchestrator.engines.probe import probe
from schemas.unit import EngineSpec, ModelSpec

SPEC = EngineSpec(
    node="here",
    service="chat",
    replica=0,
    engine="command",
    model=ModelSpec(name="tiny", source="hub:lab/tiny", revision=None),
    max_batch=1,
    args={"command": "serve {port}"},
)


@contextmanager
def engine(answer: Mapping[str, Any]) -> Iterator[str]:
    """Serve one answer to every POST and yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": [{"message": {"content": "Hi"}}], "usage": None}, None),
        ({"choices": [{"message": {"content": "Hi"}}]}, None),
        ({"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 1}}, None),
        ({"choices": [{"message": {"content": ""}}], "usage": None}, "it answered without a token"),
        ({"choices": [], "usage": None}, "it did not answer as OpenAI's API does"),
    ],
)
async def test_a_token_counts_with_or_without_usage(answer: Mapping[str, Any], reason: str | None) -> None:
    async with httpx.AsyncClient() as http:
        with engine(answer) as url:
            said = await probe(http, SPEC, url, None)

    assert said is None if reason is None else said is not None and said.startswith(reason)

"""I/O: what the small servers of the tests share: a thread on loopback that starts and stops with a context."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about clients that leave."""


class LoopbackServer(ABC):
    """Answers GET and HEAD on a port of its own while the context lasts.

    `stalled` is set once an answer is held open; `hold` keeps it open until the server stops. Answers are given side by
    side; `takes_one` counts down for one of them only.
    """

    def __init__(self) -> None:
        self.stalled = threading.Event()
        self._closing = threading.Event()
        self._counting = threading.Lock()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.answer(self)

            def do_HEAD(self) -> None:
                served.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def takes_one(self, switch: str) -> bool:
        """Tell whether an attribute that says how many answers are to be spoilt has one left, and take it."""
        with self._counting:
            left: int = getattr(self, switch)
            setattr(self, switch, max(0, left - 1))
            return left > 0

    def hold(self) -> None:
        """Keep the answer that is under way open."""
        self.stalled.set()
        self._closing.wait(60)

    @abstractmethod
    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""

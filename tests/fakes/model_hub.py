"""I/O: a small model hub on loopback, enough of it for snapshot_download."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

COMMIT = "a" * 40


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about clients that leave."""


class ModelHub:
    """Serves one repository at one commit, which is also its `main`.

    `requests` has every (method, path); `token` is the last one that a client sent; `truncate` ends that many
    downloads half way; `stall` holds all open half way.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo = repo
        self.files = files
        self.requests: list[tuple[str, str]] = []
        self.token: str | None = None
        self.truncate = 0
        self.stall = False
        self.stalled = threading.Event()
        self._closing = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0].strip("/")
        self.requests.append((request.command, path))
        self.token = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if path in {f"api/models/{self.repo}/revision/main", f"api/models/{self.repo}/revision/{COMMIT}"}:
            siblings = [{"rfilename": name} for name in self.files]
            self._json(request, {"id": self.repo, "sha": COMMIT, "siblings": siblings})
        elif path == f"api/models/{self.repo}/tree/{COMMIT}":
            self._json(
                request,
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}
                    for name, data in self.files.items()
                ],
            )
        elif path.startswith(f"{self.repo}/resolve/{COMMIT}/"):
            self._file(request, self.files[path.removeprefix(f"{self.repo}/resolve/{COMMIT}/")])
        else:
            request.send_response(404)
            request.send_header("X-Error-Code", "RepoNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()

    def _json(self, request: BaseHTTPRequestHandler, content: object) -> None:
        body = json.dumps(content).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _file(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        asked = request.headers.get("Range")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        body = data[first:]
        request.send_response(206 if asked else 200)
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:40]}"')
        request.send_header("X-Repo-Commit", COMMIT)
        if asked:
            request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.stall:
            request.wfile.write(body[: len(body) // 2])
            self.stalled.set()
            self._closing.wait(60)
        elif self.truncate:
            self.truncate -= 1
            request.wfile.write(body[: len(body) // 2])
        else:
            request.wfile.write(body)

"""I/O: a small model hub on loopback, enough of it for snapshot_download."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

from tests.fakes.serving import LoopbackServer

COMMIT = "a" * 40
NEXT_COMMIT = "b" * 40


class ModelHub(LoopbackServer):
    """Serves one repository. `main` is `commits[-1]`; what is pushed later gets a commit of its own.

    `requests` has every (method, path); `token` is the last one that a client sent; `truncate` ends that many
    downloads half way; `stall` holds all open half way.
    """

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        super().__init__()
        self.repo = repo
        self.commits = {COMMIT: files}
        self.requests: list[tuple[str, str]] = []
        self.token: str | None = None
        self.truncate = 0
        self.stall = False

    @property
    def url(self) -> str:
        return self.origin

    @property
    def files(self) -> dict[str, bytes]:
        return list(self.commits.values())[-1]

    def push(self, commit: str, files: dict[str, bytes]) -> None:
        """Let `main` be another commit."""
        self.commits[commit] = files

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(request.path.partition("?")[0].strip("/"))
        self.requests.append((request.command, path))
        self.token = request.headers.get("Authorization", "").removeprefix("Bearer ") or None
        place, _, rest = path.removeprefix("api/models/").removeprefix(f"{self.repo}/").partition("/")
        revision, _, name = rest.partition("/")
        commit = list(self.commits)[-1] if revision == "main" else revision
        files = self.commits.get(commit)
        if files is None or f"{self.repo}/" not in path:
            self._refuse(request, "RevisionNotFound" if f"{self.repo}/" in path else "RepoNotFound")
        elif place == "revision":
            siblings = [{"rfilename": file} for file in files]
            self._json(request, {"id": self.repo, "sha": commit, "siblings": siblings})
        elif place == "tree":
            self._json(
                request,
                [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}
                    for file, data in files.items()
                ],
            )
        elif place == "resolve" and name in files:
            self._file(request, files[name], commit)
        else:
            self._refuse(request, "EntryNotFound")

    def _refuse(self, request: BaseHTTPRequestHandler, code: str) -> None:
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _json(self, request: BaseHTTPRequestHandler, content: object) -> None:
        body = json.dumps(content).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _file(self, request: BaseHTTPRequestHandler, data: bytes, commit: str) -> None:
        asked = request.headers.get("Range")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        body = data[first:]
        request.send_response(206 if asked else 200)
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:40]}"')
        request.send_header("X-Repo-Commit", commit)
        if asked:
            request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.stall:
            request.wfile.write(body[: len(body) // 2])
            self.hold()
        elif self.takes_one("truncate"):
            request.wfile.write(body[: len(body) // 2])
        else:
            request.wfile.write(body)

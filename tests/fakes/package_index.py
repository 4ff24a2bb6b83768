"""I/O: a small package index on loopback that can misbehave on purpose."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler

from tests.fakes.serving import LoopbackServer


def wheel(name: str, version: str, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """Build a wheel that carries `files`; return its file name and content."""
    stem = f"{name.replace('-', '_')}-{version}"
    content = {
        **files,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(data)}\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in {**content, f"{stem}.dist-info/RECORD": record.encode()}.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return f"{stem}-py3-none-any.whl", packed.getvalue()


class PackageIndex(LoopbackServer):
    """Serves the simple index and its files.

    The switches act on downloads of files: `truncate` ends that many answers half way, `corrupt` flips a byte in that
    many, `refuse` answers all with 503, `stall` holds all open half way. `requests` has (file, range) of each.
    """

    def __init__(self, *, hashes: bool = True) -> None:
        super().__init__()
        self.hashes = hashes
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.truncate = 0
        self.corrupt = 0
        self.refuse = False
        self.stall = False

    @property
    def url(self) -> str:
        return f"{self.origin}/simple"

    def add(self, name: str, version: str, files: Mapping[str, bytes]) -> str:
        """Offer a wheel and return its file name."""
        file, data = wheel(name, version, files)
        self.files[file] = data
        return file

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = request.path.strip("/").split("/")
        if request.command != "GET":
            request.send_error(501)
        elif parts[0] == "simple" and len(parts) == 2:
            self._list(request, parts[1])
        elif parts[0] == "files" and parts[-1] in self.files:
            self._serve(request, parts[-1])
        else:
            request.send_error(404)

    def _list(self, request: BaseHTTPRequestHandler, package: str) -> None:
        links = ""
        for file, data in self.files.items():
            if file.split("-")[0].replace("_", "-") == package:
                fragment = f"#sha256={hashlib.sha256(data).hexdigest()}" if self.hashes else ""
                links += f'<a href="/files/{file}{fragment}">{file}</a>'
        body = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        request.send_response(200 if links else 404)
        request.send_header("Content-Type", "text/html")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _serve(self, request: BaseHTTPRequestHandler, file: str) -> None:
        data, asked = self.files[file], request.headers.get("Range")
        self.requests.append((file, asked))
        if self.refuse:
            request.send_error(503)
            return
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        request.send_response(206 if asked else 200)
        if asked:
            request.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        request.send_header("Content-Length", str(len(data) - first))
        request.end_headers()
        body = bytearray(data[first:])
        if self.takes_one("corrupt"):
            body[len(body) // 2] ^= 0xFF
        if self.takes_one("truncate"):
            del body[len(body) // 2 :]
        if self.stall:
            request.wfile.write(body[: len(body) // 2])
            self.hold()
            return
        request.wfile.write(body)

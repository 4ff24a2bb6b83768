"""Pure: the strict reading of a request's head, before anything is routed by it.

Sanic reads more than HTTP allows: a space before a header's colon hides the header, a Host may hold a path, several
Hosts and control characters pass (see RFC 9112 sections 3.2 and 5.1). What two programs can read differently is
refused.
"""

from __future__ import annotations

import re

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") (/[!-~]*) HTTP/1\.[01]")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_DIGITS = re.compile(rb"[0-9]{1,18}")


def find_fault(head: bytes) -> str | None:
    """Say what is wrong with a request line and its header fields (without the blank line), or None."""
    line, *fields = head.split(b"\r\n")
    if _REQUEST_LINE.fullmatch(line) is None:
        return "The request line is malformed."
    hosts, lengths, encodings = 0, 0, 0
    for text in fields:
        match = _FIELD.fullmatch(text)
        if match is None:
            return "A header field is malformed."
        name, value = match[1].lower(), match[2].strip(b" \t")
        if name == b"host":
            hosts += 1
            if _HOST.fullmatch(value) is None:
                return "The Host header is malformed."
        elif name == b"content-length":
            lengths += 1
            if _DIGITS.fullmatch(value) is None:
                return "The Content-Length header is malformed."
        elif name == b"transfer-encoding":
            encodings += 1
            if value.lower() != b"chunked":
                return "The Transfer-Encoding is not supported."
    if hosts > 1 or (hosts == 0 and not line.endswith(b"1.0")):
        return "Exactly one Host header is needed."
    if lengths + encodings > 1:
        return "At most one of Content-Length and Transfer-Encoding may be sent, once."
    return None

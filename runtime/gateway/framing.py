"""Pure: the strict reading of a request's head, before anything is routed by it.

Sanic reads more than HTTP allows: a space before a header's colon hides the header, a Host may hold a path, several
Hosts and control characters pass (see RFC 9112 sections 3.2 and 5.1). What two programs can read differently is
refused.
"""

from __future__ import annotations

import re

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(_TOKEN + rb" /[!-~]* HTTP/1\.(?P<minor>[01])(?:\r\n" + _TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*)*")
_FRAMING = re.compile(rb"\r\n(host|content-length|transfer-encoding):[ \t]*([^\r]*)")
_VALUES = {
    b"host": re.compile(rb"(?:[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"),
    b"content-length": re.compile(rb"[0-9]{1,18}"),
    b"transfer-encoding": re.compile(rb"chunked"),
}


def find_fault(head: bytes) -> str | None:
    """Say what is wrong with a request line and its header fields (without the blank line), or None."""
    shape = _HEAD.fullmatch(head)
    if shape is None:
        return "The request line or a header field is malformed."
    hosts = sizes = 0
    for name, value in _FRAMING.findall(head.lower()):
        if _VALUES[name].fullmatch(value.rstrip(b" \t")) is None:
            return f"The header {name.decode()} is malformed."
        if name == b"host":
            hosts += 1
        else:
            sizes += 1
    if hosts > 1 or (hosts == 0 and shape["minor"] == b"1"):
        return "Exactly one Host header is needed."
    if sizes > 1:
        return "At most one of Content-Length and Transfer-Encoding may be sent, once."
    return None

"""I/O: makes one HTTP request on a node, for those who reach the node but not its addresses.

Standard library only: the text of this file travels with each call, as `python -c`. It reads one JSON object on one
line of stdin, and prints one, `{"status": ..., "headers": [[name, value], ...]}` or
`{"error": ..., "is_connected": ..., "is_timeout": ...}`, then the body as it comes.
"""

import base64
import http.client
import json
import sys


def main() -> None:
    """Make the request that stdin describes; its connection is closed with ours."""
    asked = json.loads(sys.stdin.buffer.readline())
    out = sys.stdout.buffer
    connection = http.client.HTTPConnection(asked["host"], asked["port"], timeout=asked["timeout_s"])
    body, is_connected = base64.b64decode(asked["body"]), False
    try:
        connection.connect()
        is_connected = True
        connection.request(asked["method"], asked["path"], body or None, dict(asked["headers"]))
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        told = {"error": f"{type(error).__name__}: {error}", "is_connected": is_connected}
        out.write(json.dumps({**told, "is_timeout": isinstance(error, TimeoutError)}).encode() + b"\n")
        return
    out.write(json.dumps({"status": answer.status, "headers": answer.getheaders()}).encode() + b"\n")
    out.flush()
    while block := answer.read1(65536):
        out.write(block)
        out.flush()


if __name__ == "__main__":
    main()

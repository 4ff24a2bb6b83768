"""I/O: `python -m runtime.gateway.openapi`: print the OpenAPI document, as `GET /openapi.json` serves it."""

from __future__ import annotations

import sys

from runtime.gateway.openapi.document import document_of
from runtime.gateway.security.scopes import NEEDS


def main() -> None:
    """Write the document to stdout."""
    from importlib.metadata import version

    sys.stdout.buffer.write(document_of(NEEDS, version("orchestrate")) + b"\n")


if __name__ == "__main__":
    main()

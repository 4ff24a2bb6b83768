"""I/O: which routes an application has, as its router knows them."""

from __future__ import annotations

import re
from typing import Any

from sanic import Sanic

_PARAMETER = re.compile(r"<\w+:(\w+)>")


def routes_of(app: Sanic[Any, Any]) -> set[tuple[str, str]]:
    """Return the method and path of every route, the path with its parameters as in `/v1/models/<name:path>`."""
    return {(method, "/" + route.path.lstrip("/")) for route in app.router.routes for method in route.methods}


def methods_of(app: Sanic[Any, Any], path: str) -> list[str]:
    """Return the methods that a path takes, for `Allow`: Sanic does not know them where the path has parameters."""
    return sorted({method for method, known in routes_of(app) if re.fullmatch(_pattern(known), path)})


def _pattern(path: str) -> str:
    pieces = _PARAMETER.split(path)
    kinds = (".+" if kind == "path" else "[^/]+" for kind in pieces[1::2])
    return re.escape(pieces[0]) + "".join(
        kind + re.escape(rest) for kind, rest in zip(kinds, pieces[2::2], strict=True)
    )

"""Pure: engines that take only requests which were checked for them, because others would break or mislead them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.gateway.adapters import mlx_lm_server
from runtime.gateway.bodies import Body

Adapt = Callable[[str, Body], Body]

_ADAPTERS: Mapping[str, Adapt] = {"mlx-lm-server": mlx_lm_server.adapt}


def is_strict(engine: str) -> bool:
    """Tell whether requests to an engine must go through `adapt`."""
    return engine in _ADAPTERS


def adapt(engine: str, path: str, body: Body) -> Body:
    """Return the body as a strict engine may have it; raises `ApiError` with status 400 for what it cannot do.

    `path` is the path of the request at the endpoint.
    """
    return _ADAPTERS[engine](path, body)

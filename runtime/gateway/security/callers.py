"""Pure: who asks, as a request's handler may know it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runtime.gateway.security.scopes import Need


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    scopes: frozenset[Need]
    """Everything that it may do."""
    names: frozenset[str] | None = None
    """The only names that it may send as `model`; None for all."""
    id: str = ""
    """The id of its key; empty where none was needed, and for the orchestrator itself."""
    digest: bytes = field(default=b"", repr=False)
    """Of its key; empty where none was needed."""
    rpm: int | None = None
    expires_at: float | None = None
    """Seconds since the epoch."""

    def may(self, need: Need) -> bool:
        """Tell whether it may use what asks for a scope."""
        return need in self.scopes


NOBODY = Caller(frozenset({"open"}))
"""Who shows no key where keys are asked for."""
ANYBODY = Caller(frozenset({"open", "inference", "metrics"}))
"""Everybody, where no keys are asked for."""
THIS_MACHINE = Caller(frozenset({"open", "inference", "metrics", "read", "admin"}))
"""Who asks over the loopback interface, where no keys are asked for."""


def caller_of(request: Any) -> Caller:
    """Return who sent a request that was admitted."""
    found: Caller = request.ctx.caller
    return found


def may_name(request: Any, name: str) -> bool:
    """Tell whether the sender of a request may use a role, alias or model, and be shown it."""
    names: frozenset[str] | None = request.ctx.caller.names
    return names is None or name in names

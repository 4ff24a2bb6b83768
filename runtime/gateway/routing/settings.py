"""Pure: how the endpoints of a role are treated: its own words, over those of its policy, over the defaults."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

from schemas.base import Frozen
from schemas.model import ModelKind
from schemas.policy import Breaker, HealthCheck, Limits, Policy, Timeouts
from schemas.stack import LocalFallback, Role, RoleFallback, ServiceEndpoint, Stack

ENCODER_TOTAL_S = 30.0
"""For all attempts of a request for embeddings or reranking: the gateway's specification."""

Part = TypeVar("Part", bound=Frozen)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a role says of its endpoints, resolved."""

    breaker: Breaker = field(default_factory=Breaker)
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    health_check: HealthCheck | None = None

    def with_first_token(self, timeout_s: float | None) -> Settings:
        """Return these settings with another time to the first content, where one is given."""
        if timeout_s is None:
            return self
        return replace(self, timeouts=self.timeouts.model_copy(update={"first_token_s": timeout_s}))


def settings_of(stack: Stack, role: Role, kind: ModelKind) -> Settings:
    """Return the settings of a role of a kind."""
    policy = stack.policies[role.policy] if role.policy else Policy()
    check = role.health_check
    limits, timeouts = _over(policy.limits, role.limits), _over(policy.timeouts, role.timeouts)
    if kind != "chat":
        timeouts = encoder_timeouts(policy.timeouts, role.timeouts, min(limits.attempts, _ways(stack, role)))
    settings = Settings(
        _over(policy.breaker, role.breaker),
        timeouts,
        limits,
        _over(policy.health_check, check) if policy.health_check else check,
    )
    return settings.with_first_token(role.timeout_s)


def default_settings(kind: ModelKind, ways: int = 1) -> Settings:
    """Return the settings of what no role names."""
    return Settings() if kind == "chat" else Settings(timeouts=encoder_timeouts(Timeouts(), ways=ways))


def encoder_timeouts(policy: Timeouts, own: Timeouts | None = None, ways: int = 1) -> Timeouts:
    """Return the timeouts of an embedding or reranking role from those of its policy and its `own`.

    Policies are made for chat, where minutes are right: they can only shorten what a request may take here, while what
    the role itself says counts. An attempt gets an equal share of that: `ways` is how many may be made.
    """
    base = policy.model_copy(update={"total_s": min(policy.total_s, ENCODER_TOTAL_S)})
    found = _over(base, own)
    if own is not None and "first_token_s" in own.model_fields_set:
        return found
    share_s = found.total_s / max(ways, 1)
    if policy.first_token_s is not None and (own is None or "total_s" not in own.model_fields_set):
        share_s = min(policy.first_token_s, share_s)
    return found.model_copy(update={"first_token_s": share_s})


def _ways(stack: Stack, role: Role) -> int:
    """Return how many endpoints there are to ask for a role, what it falls back to counted as one."""
    copies = (
        stack.services[endpoint.service].replicas if isinstance(endpoint, ServiceEndpoint) else 1
        for endpoint in role.endpoints.values()
    )
    return sum(copies) + isinstance(role.fallback, LocalFallback | RoleFallback)


def _over(base: Part, own: Part | None) -> Part:
    """Return the base with the fields that the other one names."""
    if own is None:
        return base
    return base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})

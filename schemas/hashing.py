"""Pure: canonical JSON and the digests that decide whether something changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from schemas.base import Frozen
from schemas.stack import Stack

HASH_VERSION = 1
"""Goes into every spec hash. Raised only when every unit must be replaced."""

_HASH_LENGTH = 12
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_ROUTING_SECTIONS = ("roles", "aliases", "helpers", "policies", "history")
_ROUTING_GATEWAY_FIELDS = ("auth", "exposed", "hosts", "origins", "body_limit_mib")


def canonical_json(value: object) -> str:
    """Write JSON in the one form that is hashed: sorted keys, no spaces, no escapes for non-ASCII text."""
    return _ENCODER.encode(value)


def spec_hash(spec: Frozen) -> str:
    """Return the 12 hexadecimal digits that identify a unit's specification.

    Fields at their default are left out, so that a field added by an upgrade changes no hash.
    """
    body = {"hash_version": HASH_VERSION, "spec": spec.model_dump(mode="json", exclude_defaults=True)}
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()[:_HASH_LENGTH]


def routing_fields(stack: Stack) -> dict[str, str]:
    """Return everything that the gateway takes from the files at once: dotted key -> JSON text. Secrets are `***`."""
    tree = stack.model_dump(mode="json", exclude_unset=True)
    gateway = {field: tree["gateway"][field] for field in _ROUTING_GATEWAY_FIELDS if field in tree["gateway"]}
    hot = {**{section: tree.get(section) for section in _ROUTING_SECTIONS}, "gateway": gateway}
    return dict(sorted(_flatten({section: fields for section, fields in hot.items() if fields}, "")))


def routing_digest(stack: Stack) -> str:
    """Return 12 hexadecimal digits that change whenever a routing field does."""
    return hashlib.sha256(canonical_json(routing_fields(stack)).encode()).hexdigest()[:_HASH_LENGTH]


def _flatten(value: Any, prefix: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        nested = (_flatten(child, f"{prefix}.{key}" if prefix else str(key)) for key, child in value.items())
        return [pair for pairs in nested for pair in pairs]
    return [(prefix, canonical_json(value))] if prefix else []

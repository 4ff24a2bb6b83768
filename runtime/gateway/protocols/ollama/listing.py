"""Pure: what Ollama's clients are told of the models: `/api/tags`, `/api/ps`, `/api/show`, and which name they mean.

Read in ollama `api/types.go` (`ListModelResponse`, `ProcessModelResponse`, `ShowResponse`, `ModelDetails`). What is not
known is an empty text or 0, as there; nothing is made up but the digest, which clients cut to twelve letters to tell
models apart: where no server tells one, it is that of the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from runtime.gateway.facts.known import Capability, Facts
from runtime.gateway.facts.names import Named
from runtime.gateway.protocols.ollama.answers import moment

LATEST = ":latest"
"""The tag of a name that has none (ollama `docs/api.md`, "Model names")."""

_CAPABILITIES: tuple[Capability, ...] = ("completion", "tools", "insert", "vision", "embedding", "thinking")
"""Ollama's words (ollama `types/model/capability.go`), of those that say something here."""
_STAYS_S = 292 * 365 * 24 * 3600
"""How far off Ollama puts the end of what stays in memory for ever: the longest duration that Go knows."""
_WIDTH = 30
"""Of the names in the text of parameters."""


def served_name(asked: str, is_served: Callable[[str], bool]) -> str:
    """Return the name that is served for one that a client asks for: `:latest` may be left out or added.

    `is_served` tells whether a name is there for this client; where neither form is, the name stays as it was asked.
    """
    if is_served(asked):
        return asked
    other = asked.removesuffix(LATEST) if asked.endswith(LATEST) else asked + LATEST
    return other if is_served(other) else asked


def tagged(name: str) -> str:
    """Return a name as it is listed: with a tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else name + LATEST


def tag(named: Named, changed_at: float) -> dict[str, Any]:
    """Return a line of `/api/tags`; `changed_at`, in seconds since the epoch, is for models that nobody dates."""
    name, facts = tagged(named.name), named.facts
    return {
        "name": name,
        "model": name,
        "modified_at": facts.modified_at or moment(changed_at),
        "size": facts.size_bytes or 0,
        "digest": _digest(named),
        "details": _details(facts),
        "capabilities": _capabilities(facts),
    }


def process(named: Named, wall: float) -> dict[str, Any]:
    """Return a line of `/api/ps`; `wall` is now, in seconds since the epoch."""
    name, facts = tagged(named.name), named.facts
    return {
        "name": name,
        "model": name,
        "size": facts.size_loaded or facts.size_bytes or 0,
        "digest": _digest(named),
        "details": _details(facts),
        "expires_at": moment(wall + _STAYS_S if facts.expires_at is None else facts.expires_at),
        "size_vram": facts.size_vram or 0,
        "context_length": facts.context_length or 0,
    }


def shown(named: Named, changed_at: float) -> dict[str, Any]:
    """Return the answer of `/api/show`."""
    facts = named.facts
    return {
        "modelfile": f"# Managed by the stack files of the gateway.\nFROM {named.name}\n",
        "parameters": "" if facts.context_length is None else f"{'num_ctx':<{_WIDTH}} {facts.context_length}",
        "template": "",
        "details": _details(facts),
        "model_info": _info(named.name, facts),
        "capabilities": _capabilities(facts),
        "modified_at": facts.modified_at or moment(changed_at),
    }


def _info(name: str, facts: Facts) -> Mapping[str, Any]:
    """Return facts under the keys of GGUF; those of the architecture begin with its name, as clients look them up."""
    architecture = facts.architecture or "unknown"
    known = {
        "general.basename": name,
        "general.parameter_count": facts.parameter_count,
        f"{architecture}.context_length": facts.context_length,
        f"{architecture}.embedding_length": facts.dimensions,
    }
    return {"general.architecture": architecture, **{key: value for key, value in known.items() if value is not None}}


def _details(facts: Facts) -> dict[str, Any]:
    lengths = {"context_length": facts.context_length, "embedding_length": facts.dimensions}
    return {
        "parent_model": "",
        "format": facts.format or "",
        "family": facts.architecture or "",
        "families": [facts.architecture] if facts.architecture else [],
        "parameter_size": facts.parameter_size or "",
        "quantization_level": facts.quantisation or "",
        **{key: value for key, value in lengths.items() if value is not None},
    }


def _capabilities(facts: Facts) -> list[str]:
    return [word for word in _CAPABILITIES if word in facts.can]


def _digest(named: Named) -> str:
    return named.facts.digest or hashlib.sha256(named.name.encode(errors="replace")).hexdigest()

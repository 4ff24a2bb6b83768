"""Pure: what must hold of a service's prompt cache and of the draft model that proposes tokens to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]
Tree = Mapping[str, Any]


def drafting_problems(here: Path, service: Tree, models: Mapping[str, Tree]) -> Iterator[tuple[Path, str]]:
    """Yield (key path, message) for what is wrong with `prompt_cache_gib`, `draft` and `draft_tokens` of one service.

    `models` are the stack's. Values of a wrong type and names of no model are left to others.
    """
    engine, model = service.get("engine", "mlx"), models.get(str(service.get("model")), {})
    kind = model.get("kind", "chat")
    for key in ("prompt_cache_gib", "draft"):
        if service.get(key) is None:
            continue
        if engine != "mlx":
            hint = "; other engines take theirs as `args`" if engine != "ollama" else ""
            yield (*here, key), f"only engine mlx knows it, found engine {engine}{hint}"
        elif kind != "chat":
            yield (*here, key), f"only chat models generate tokens, and {service.get('model')!r} has kind: {kind}"
    draft = service.get("draft")
    if draft is None:
        if service.get("draft_tokens") is not None:
            yield (*here, "draft_tokens"), "goes with `draft`, the model that proposes them"
        return
    if draft == service.get("model"):
        yield (*here, "draft"), f"{draft!r} is the service's own model; name a smaller one of the same vocabulary"
    drafts = models.get(str(draft), {}).get("kind", "chat")
    if drafts != "chat":
        yield (*here, "draft"), f"expected a chat model, and {draft!r} has kind: {drafts}"
    if service.get("sharding") is not None:
        message = "a draft model proposes tokens to a model in one process, not to a sharded group; leave `draft` out"
        yield (*here, "draft"), f"{message}, or let one node hold the model"


def added_memory(service: Tree, models: Mapping[str, Tree]) -> float:
    """Return the GiB that a service's prompt cache and draft model declare on top of what its model needs."""
    declared = (service.get("prompt_cache_gib"), models.get(str(service.get("draft")), {}).get("memory_gib"))
    return float(sum(value for value in declared if isinstance(value, int | float)))

"""Pure: the names of Ollama's models. Source: ollama/ollama `types/model/name.go`."""

from __future__ import annotations

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"


def full_name(name: str) -> str:
    """Return a model's name with the parts that Ollama adds: `m` is `registry.ollama.ai/library/m:latest`.

    It compares names without regard to case (`Name.EqualFold`).
    """
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a host's port
        path, tag = name, _TAG
    parts = path.split("/")
    defaults = [_HOST, _NAMESPACE][: max(0, 3 - len(parts))]
    return "/".join([*defaults, *parts]).lower() + f":{tag.lower()}"


def short_name(name: str) -> str:
    """Return a model's name as people write it: without the tag `latest`."""
    return name.removesuffix(f":{_TAG}")

"""Pure: the older shapes of stack files in today's words: `helper_nodes:` and `backends:`.

Both say by role which servers of others answer, with what timeout, fallback, health check and circuit breaker. They
become helpers and roles before anything else looks at the tree, so that nothing further on knows of them; what is wrong
with them is told with the keys that the file has.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from schemas.base import Frozen, PublicName, RoleKey
from schemas.checks import Finding, Path, Tree
from schemas.explain import explain
from schemas.model import ModelKind
from schemas.policy import Seconds
from schemas.stack import Url

LEGACY_KEYS = ("helper_nodes", "backends")
ENOUGH_S = 30.0
"""What a request for vectors or ranks may take by default: the timeouts of all endpoints and a fallback must fit."""

_CHAT: ModelKind = "chat"
_KINDS: Mapping[str, ModelKind] = {
    "embedding": "embedding",
    "embeddings": "embedding",
    "reranking": "reranking",
    "rerank": "reranking",
    "reranker": "reranking",
}
"""What roles of these names do; others are for chat, unless their documents may stay unranked."""


class CircuitBreaker(Frozen):
    """When an endpoint is left alone after failures, and for how long."""

    failure_threshold: Annotated[int | None, Field(ge=1, le=1000)] = None
    """Consecutive failures that open it."""
    reset_timeout_sec: Seconds | None = None
    """Seconds it stays open the first time."""


class OldEndpoint(Frozen):
    """A server that somebody else runs."""

    url: Url
    """Its base URL; it speaks OpenAI's API, as Ollama does too."""
    model: PublicName
    """Its own name of the model."""
    timeout_sec: Seconds | None = None
    """Seconds to the first content of an answer."""
    priority: Annotated[int, Field(ge=1, le=100)] = 1
    """Lower is tried first."""


class OldRole(Frozen):
    """Who answers for a role: one server by its `url` and `model`, or a list of `endpoints`."""

    url: Url | None = None
    model: PublicName | None = None
    timeout_sec: Seconds | None = None
    """Seconds to the first content of an answer, for all its endpoints."""
    endpoints: tuple[OldEndpoint, ...] | None = None
    fallback: Literal["local", "skip", "error"] = "error"
    """`local` is the one service of this stack that does the same."""
    health_check_interval_sec: Seconds | None = None
    circuit_breaker: CircuitBreaker | None = None


class OldSections(Frozen):
    """The older sections of a stack file."""

    helper_nodes: Mapping[RoleKey, OldRole] = Field(default_factory=dict)
    """Older shape of `helpers` and `roles`: who answers, by role."""
    backends: Mapping[RoleKey, OldRole] = Field(default_factory=dict)
    """The same under another name; a list of endpoints is the role `chat`."""


@dataclass(slots=True)
class Modern:
    """A composed tree without older shapes."""

    tree: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    """What is wrong with the older shapes, at their own keys."""
    notes: list[str] = field(default_factory=list)
    """What each of them became, in words."""
    origins: dict[Path, Path] = field(default_factory=dict)
    """The key of the file by the key of the tree that came from it."""

    def origin(self, path: Path) -> Path:
        """Return the key of the file that a key of the tree came from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return path

    def put(self, path: Path, value: object, origin: Path) -> None:
        """Set a key of the tree that came from a key of the file."""
        place = self.tree
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
        self.origins[path] = origin


def modernised(tree: Tree) -> Modern:
    """Return a composed tree in which `helper_nodes` and `backends` have become helpers and roles."""
    old = {key: tree[key] for key in LEGACY_KEYS if key in tree}
    if not old:
        return Modern(dict(tree))
    modern = Modern(copy.deepcopy({key: value for key, value in tree.items() if key not in old}))
    is_list = isinstance(old.get("backends"), list)
    if is_list:
        old["backends"] = {_CHAT: {"endpoints": old["backends"]}}
    sound = _sound_roles(old, modern.findings)
    if all(isinstance(modern.tree.setdefault(key, {}), dict) for key in ("helpers", "roles")):
        for here in sound:
            _convert(modern, here, OldRole.model_validate_json(json.dumps(old[here[0]][here[1]])))
    if is_list:
        modern.findings = [finding._replace(path=_as_list(finding.path)) for finding in modern.findings]
        modern.origins = {path: _as_list(origin) for path, origin in modern.origins.items()}
    return modern


def _as_list(path: Path) -> Path:
    """Return a key of `backends` as it is where the file has a list."""
    return ("backends", *path[3:]) if path[:2] == ("backends", _CHAT) else path


def _sound_roles(old: Tree, findings: list[Finding]) -> list[Path]:
    """Return the keys of the roles whose types are right; adds what is wrong with the others."""
    try:
        OldSections.model_validate_json(json.dumps(old))
    except ValidationError as error:
        findings += [Finding(*found) for found in explain(error.errors(include_url=False), OldSections)]
    except (ValueError, TypeError) as error:
        findings += [Finding((key,), f"holds a value that is not plain data: {error}") for key in old]
    wrong = {finding.path[:2] for finding in findings}
    return [
        (section, str(name))
        for section, roles in old.items()
        if (section,) not in wrong and isinstance(roles, Mapping)
        for name in roles
        if (section, str(name)) not in wrong
    ]


def _convert(modern: Modern, here: Path, old: OldRole) -> None:
    """Write one role and its helpers into the tree, or say why that cannot be done."""
    name, role = here[1], ("roles", here[1])
    kind = _KINDS.get(name.lower()) or ("reranking" if old.fallback == "skip" else _CHAT)
    if name in modern.tree["roles"]:
        modern.findings.append(Finding(here, f"`roles.{name}` is in the files too; keep one of them"))
        return
    endpoints = _endpoints(here, old)
    if not endpoints:
        message = "expected a `url` with its `model`, or a list of `endpoints`, and not both"
        modern.findings.append(Finding(here, message))
        return
    if old.fallback == "skip" and kind != "reranking":
        modern.findings.append(Finding((*here, "fallback"), f"skip is for reranking, and this is a role for {kind}"))
        return
    modern.put(role, {"endpoints": {}}, here)
    placed = [_place(modern, role, origin, endpoint, kind) for origin, endpoint in endpoints]
    behind = _fallback(modern, here, old.fallback, kind)
    if behind is not None:
        modern.put((*role, "fallback"), behind, (*here, "fallback"))
    for path, value, key in _settings(old, endpoints, kind):
        modern.put((*role, *path), value, (*here, key))
    last = behind["local"] if isinstance(behind, dict) else behind
    ladder = ", ".join([*placed, *([f"then {last}"] if last else [])])
    modern.notes.append(f"{'.'.join(here)} is read as roles.{name}: {ladder}")


def _endpoints(here: Path, old: OldRole) -> list[tuple[Path, OldEndpoint]]:
    """Return the endpoints with their keys; none where the file does not say exactly one thing."""
    if old.url is not None and old.model is not None and old.endpoints is None:
        return [(here, OldEndpoint(url=old.url, model=old.model, timeout_sec=old.timeout_sec))]
    if old.endpoints is None or old.url is not None or old.model is not None:
        return []
    return [((*here, "endpoints", str(index)), endpoint) for index, endpoint in enumerate(old.endpoints)]


def _place(modern: Modern, role: Path, origin: Path, endpoint: OldEndpoint, kind: ModelKind) -> str:
    """Write an endpoint and the helper that it is on; return its name."""
    helper = _helper_at(modern, endpoint.url, origin)
    models = ("helpers", helper, "models", endpoint.model)
    known = modern.tree["helpers"][helper].get("models", {}).get(endpoint.model)
    if known is None:
        modern.put(models, {} if kind == _CHAT else {"kind": kind}, (*origin, "model"))
    elif known.get("kind", _CHAT) != kind:
        message = f"the model is for {known.get('kind', _CHAT)} in another role of this file, here for {kind}"
        modern.findings.append(Finding((*origin, "model"), message))
    places = modern.tree[role[0]][role[1]]["endpoints"]
    name = _free(helper, places)
    written: dict[str, object] = {"helper": helper, "model": endpoint.model, "priority": endpoint.priority}
    if endpoint.timeout_sec is not None:
        written["timeout_s"] = endpoint.timeout_sec
    modern.put((*role, "endpoints", name), {}, origin)
    for key, value in written.items():
        modern.put((*role, "endpoints", name, key), value, (*origin, _OLD_WORDS.get(key, key)))
    return name


_OLD_WORDS = {"helper": "url", "timeout_s": "timeout_sec"}


def _helper_at(modern: Modern, url: str, origin: Path) -> str:
    """Return the helper that an older shape has put at a URL; writes one where there is none yet."""
    made = [path[1] for path in modern.origins if path[0] == "helpers" and len(path) == 2]
    for name in made:
        if modern.tree["helpers"][name]["url"] == url:
            return name
    host = re.sub(r"[^a-z0-9._-]", "-", (urlsplit(url).hostname or "").lower()).strip("-._")[:50] or "helper"
    name = _free(host, modern.tree["helpers"])
    modern.put(("helpers", name), {}, origin)
    modern.put(("helpers", name, "url"), url, (*origin, "url"))
    return name


def _free(name: str, taken: Mapping[str, object]) -> str:
    """Return a name, numbered where it is taken."""
    numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(each for each in numbered if each not in taken)


def _fallback(modern: Modern, here: Path, old: str, kind: ModelKind) -> str | dict[str, str] | None:
    """Return what a role falls back to in today's words; None for `error`, or where no service can be it."""
    if old != "local":
        return None if old == "error" else old
    services = _services(modern.tree, kind) or (_services(modern.tree, "embedding") if kind == "reranking" else [])
    if len(services) == 1:
        return {"local": services[0]}
    if services:
        found = f"there are {', '.join(services)}"
        mend = f"write the role as `roles.{here[1]}` with `fallback: {{local: {services[0]}}}`"
    else:
        found = f"no service here has a model of kind {kind}"
        mend = "add one under `services:`, or write `fallback: error`"
    message = f"`local` is the one service of ours that does the same, and {found}; {mend}"
    modern.findings.append(Finding((*here, "fallback"), message))
    return None


def _services(tree: Tree, kind: ModelKind) -> list[str]:
    """Return the services whose model is of a kind."""
    models, services = tree.get("models"), tree.get("services")
    if not isinstance(models, Mapping) or not isinstance(services, Mapping):
        return []
    kinds = {name: model.get("kind", _CHAT) for name, model in models.items() if isinstance(model, Mapping)}
    return [
        str(name)
        for name, service in services.items()
        if isinstance(service, Mapping) and kinds.get(str(service.get("model"))) == kind
    ]


def _settings(
    old: OldRole, endpoints: Sequence[tuple[Path, OldEndpoint]], kind: ModelKind
) -> list[tuple[Path, object, str]]:
    """Return the other settings of a role: key in the role, value, and the key in the file."""
    found: list[tuple[Path, object, str]] = []
    if old.timeout_sec is not None and old.endpoints is not None:
        found.append((("timeout_s",), old.timeout_sec, "timeout_sec"))
    timeouts = [endpoint.timeout_sec or old.timeout_sec or 0.0 for _, endpoint in endpoints]
    if kind != _CHAT and sum(timeouts) + max(timeouts) > ENOUGH_S:
        # Else the first endpoints would use up the time of those behind them.
        found.append((("timeouts",), {"total_s": sum(timeouts) + ENOUGH_S}, "timeout_sec"))
    if old.health_check_interval_sec is not None:
        check = {"interval_s": old.health_check_interval_sec}
        found.append((("health_check",), check, "health_check_interval_sec"))
    if old.circuit_breaker is not None:
        said = {"failure_threshold": old.circuit_breaker.failure_threshold}
        said_s = {"reset_timeout_s": old.circuit_breaker.reset_timeout_sec}
        breaker = {key: value for key, value in (said | said_s).items() if value is not None}
        found.append((("breaker",), breaker, "circuit_breaker"))
    return found

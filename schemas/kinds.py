"""Pure: what a role does: chat, vectors or an order of documents. It follows from the models behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.base import ServiceName
from schemas.model import ModelKind
from schemas.stack import HelperEndpoint, LocalFallback, Role, RoleFallback, ServiceEndpoint, Stack

Path = tuple[str, ...]
Tree = Mapping[str, Any]

CHAT_ONLY_ENGINES = frozenset({"mlx-lm-server"})
"""Engines that serve no other kind of model (read in mlx-lm 0.32)."""
NO_CHAT_APIS = frozenset({"tei", "infinity"})
"""Helpers that make vectors and scores only."""


@dataclass(frozen=True, slots=True)
class Place:
    """One endpoint or fallback of a role, as far as kinds go."""

    path: Path
    """Its key below the role."""
    name: str
    """Who fills it."""
    kind: ModelKind | None
    """What its model does; None where the files do not say."""
    has_cosine: bool = False
    """It is a worker of ours: with an embedding model it ranks documents by how near their vectors are."""
    api: str = ""
    """Of a helper: how it is asked."""

    def can_be(self, kind: ModelKind) -> bool:
        """Tell whether it can serve in a role of a kind."""
        if self.kind in (None, kind):
            return True
        return self.kind == "embedding" and kind == "reranking" and self.has_cosine


@dataclass(frozen=True, slots=True)
class RoleSigns:
    """Everything in a role from which its kind follows."""

    places: tuple[Place, ...]
    local: Place | None = None
    """The service that it falls back to."""
    fallback_role: str | None = None
    context_role: str | None = None
    """The role that reads longer prompts."""
    has_dimensions: bool = False
    is_skipped: bool = False
    """It falls back to `skip`."""


def role_kinds(stack: Stack) -> dict[str, ModelKind]:
    """Return what each role of a stack does."""
    signs = {str(name): _signs_of(stack, role) for name, role in stack.roles.items()}
    return {name: kind_of(name, signs) for name in signs}


def kind_of(name: str, roles: Mapping[str, RoleSigns], above: tuple[str, ...] = ()) -> ModelKind:
    """Return what a role does.

    Pinned `dimensions` mean vectors, the fallback `skip` means reranking. Else its models say it: a reranker among
    embedding models makes it reranking, as these can do that too. Where nothing says anything, its fallback does, and
    at last it is chat.
    """
    role = roles[name]
    if role.is_skipped:
        return "reranking"
    if role.has_dimensions:
        return "embedding"
    known = [place.kind for place in role.places if place.kind is not None]
    if not known and role.local is not None and role.local.kind is not None:
        known = [role.local.kind]
    if known:
        return "reranking" if set(known) == {"embedding", "reranking"} else known[0]
    below = role.fallback_role
    if below is not None and below in roles and below not in (*above, name):
        return kind_of(below, roles, (*above, name))
    return "chat"


def kind_problems(tree: Tree) -> Iterator[tuple[Path, str]]:
    """Yield (key path, message) for everything in a composed tree that mixes kinds."""
    signs = {name: _signs_in(tree, role) for name, role in _section(tree, "roles").items()}
    kinds = {name: kind_of(name, signs) for name in signs}
    for name, role in signs.items():
        yield from (((("roles", name, *path), text)) for path, text in _role_problems(role, kinds[name], kinds))
        yield from _setting_problems(("roles", name), _section(tree, "roles")[name], kinds[name])
    yield from _service_problems(tree)
    yield from _alias_problems(tree, kinds)


def _role_problems(role: RoleSigns, kind: ModelKind, kinds: Mapping[str, ModelKind]) -> Iterator[tuple[Path, str]]:
    if role.has_dimensions and kind != "embedding":
        yield ("dimensions",), f"only the vectors of an embedding role have a length, and this one is for {kind}"
    elif role.has_dimensions and role.is_skipped:
        yield ("fallback",), "skip is for reranking, and `dimensions` make this an embedding role"
    for place in (*role.places, *(() if role.local is None else (role.local,))):
        if not place.can_be(kind):
            why = _why(role, kind, place)
            yield place.path, f"{place.name} is of kind {place.kind}, and the role is for {kind}{why}; split the role"
    yield from _api_problems(role, kind)
    for path, below in ((("fallback", "role"), role.fallback_role), (("context_fallback",), role.context_role)):
        if below is not None and kinds.get(below, kind) != kind:
            yield path, f"the role {below!r} is for {kinds[below]}, this one for {kind}; name one of its kind"


def _setting_problems(here: Path, role: Tree, kind: ModelKind) -> Iterator[tuple[Path, str]]:
    """Yield what a role says of itself that means nothing for its kind. What a policy says is for all kinds."""
    limits = role.get("limits")
    if kind == "chat" and isinstance(limits, Mapping) and limits.get("hedge_s") is not None:
        yield (*here, "limits", "hedge_s"), "only vectors and scores are asked for twice, and this role is for chat"
    if kind != "chat" and role.get("midstream") not in (None, "error"):
        yield (*here, "midstream"), f"only chat is streamed, and this role is for {kind}"


def _api_problems(role: RoleSigns, kind: ModelKind) -> Iterator[tuple[Path, str]]:
    for place in role.places:
        if kind == "chat" and place.api in NO_CHAT_APIS:
            message = f"{place.api} has no chat; say what {place.name} is for: `kind: embedding` or `kind: reranking`"
            yield place.path, f"{message} at the helper's model"
        elif kind != "chat" and place.api in CHAT_ONLY_ENGINES:
            yield place.path, f"{place.api} serves chat models only, and this role is for {kind}"


def _why(role: RoleSigns, kind: ModelKind, place: Place) -> str:
    if role.is_skipped:
        return " (fallback: skip)"
    if role.has_dimensions:
        return " (it has dimensions)"
    other = next((each for each in role.places if each.kind == kind and each is not place), None)
    return "" if other is None else f" (as {other.name} is)"


def _service_problems(tree: Tree) -> Iterator[tuple[Path, str]]:
    for name, service in _section(tree, "services").items():
        kind = _kind(_section(tree, "models").get(str(service.get("model")), {}).get("kind", "chat"))
        if kind in (None, "chat"):
            continue
        if service.get("sharding") is not None:
            message = f"models of kind {kind} are not sharded: leave `sharding` out, name one node or use `replicas`"
            yield ("services", name, "sharding"), message
        engine = service.get("engine", "mlx")
        if engine in CHAT_ONLY_ENGINES:
            yield ("services", name, "engine"), f"{engine} serves chat models only, and this one is of kind {kind}"


def _alias_problems(tree: Tree, roles: Mapping[str, ModelKind]) -> Iterator[tuple[Path, str]]:
    known: dict[str, ModelKind] = {}
    for model, fields in _section(tree, "models").items():
        kind = _kind(fields.get("kind", "chat"))
        if kind is not None:
            known[model] = kind
    for name, service in _section(tree, "services").items():
        if str(service.get("model")) in known:
            known[name] = known[str(service["model"])]
    known |= roles
    aliases = tree.get("aliases")
    for alias, targets in aliases.items() if isinstance(aliases, Mapping) else ():
        found = [
            (index, target, known[target])
            for index, target in enumerate(targets if isinstance(targets, list) else ())
            if isinstance(target, str) and target in known
        ]
        for index, target, kind in found[1:]:
            if kind != found[0][2]:
                message = f"{target!r} is for {kind}, and {found[0][1]!r} before it for {found[0][2]}"
                yield ("aliases", str(alias), str(index)), message


def _signs_of(stack: Stack, role: Role) -> RoleSigns:
    """Collect a role's signs from the types."""

    def of_service(path: Path, name: ServiceName) -> Place:
        service = stack.services.get(name)
        if service is None:
            return Place(path, name, None)
        model = stack.models.get(service.model)
        return Place(path, name, None if model is None else model.kind, service.engine == "mlx")

    def of(name: str, endpoint: ServiceEndpoint | HelperEndpoint) -> Place:
        if isinstance(endpoint, ServiceEndpoint):
            return of_service(("endpoints", name, "service"), endpoint.service)
        helper = stack.helpers.get(endpoint.helper)
        offered = None if helper is None else helper.models.get(endpoint.model)
        kind = None if offered is None else offered.kind
        api = "" if helper is None else helper.api
        return Place(("endpoints", name, "model"), endpoint.model, kind, api == "worker", api)

    fallback = role.fallback
    return RoleSigns(
        tuple(of(str(name), endpoint) for name, endpoint in role.endpoints.items()),
        of_service(("fallback", "local"), fallback.local) if isinstance(fallback, LocalFallback) else None,
        fallback.role if isinstance(fallback, RoleFallback) else None,
        role.context_fallback,
        role.dimensions is not None,
        fallback == "skip",
    )


def _signs_in(tree: Tree, role: Tree) -> RoleSigns:
    """Collect a role's signs from a composed tree, where any part may be missing or of a wrong type."""
    fallback = role.get("fallback")
    below = fallback if isinstance(fallback, Mapping) else {}
    local = below.get("local")
    return RoleSigns(
        tuple(_place_in(tree, name, endpoint) for name, endpoint in _section(role, "endpoints").items()),
        _service_in(tree, ("fallback", "local"), local) if isinstance(local, str) else None,
        below["role"] if isinstance(below.get("role"), str) else None,
        longer if isinstance(longer := role.get("context_fallback"), str) else None,
        role.get("dimensions") is not None,
        fallback == "skip",
    )


def _place_in(tree: Tree, name: str, endpoint: Tree) -> Place:
    if "helper" not in endpoint:
        return _service_in(tree, ("endpoints", name, "service"), str(endpoint.get("service")))
    helper = _section(tree, "helpers").get(str(endpoint["helper"]), {})
    model = str(endpoint.get("model"))
    kind = _kind(_section(helper, "models").get(model, {}).get("kind"))
    api = str(helper.get("api", "openai"))
    return Place(("endpoints", name, "model"), model, kind, api == "worker", api)


def _service_in(tree: Tree, path: Path, name: str) -> Place:
    service = _section(tree, "services").get(name)
    if service is None:
        return Place(path, name, None)
    model = _section(tree, "models").get(str(service.get("model")))
    kind = None if model is None else _kind(model.get("kind", "chat"))
    return Place(path, name, kind, service.get("engine", "mlx") == "mlx")


def _kind(value: object) -> ModelKind | None:
    match value:
        case "chat" | "embedding" | "reranking":
            return value
        case _:
            return None


def _section(tree: Tree, name: str) -> dict[str, Tree]:
    value = tree.get(name)
    if not isinstance(value, Mapping):
        return {}
    return {str(key): child for key, child in value.items() if isinstance(child, Mapping)}

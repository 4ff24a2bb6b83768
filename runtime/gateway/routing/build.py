"""Pure: builds the routing table from a stack, which says what is wanted, and `routes.json`, which says what runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from runtime.gateway.adapters.strict import is_strict, max_batch_of
from runtime.gateway.routing.settings import Settings, default_settings, settings_of
from runtime.gateway.routing.table import (
    MIB,
    Card,
    EndpointIdentity,
    Missing,
    Place,
    Route,
    RoutingTable,
    Target,
    identity_at,
    identity_of,
)
from schemas.base import HelperName, RoleName, ServiceName, UnitId
from schemas.hashing import routing_digest, routing_fields
from schemas.kinds import role_kinds
from schemas.model import ModelKind
from schemas.policy import Limits, Timeouts
from schemas.routes import Instance, Routes
from schemas.stack import HelperEndpoint, LocalFallback, Role, RoleFallback, ServiceEndpoint, Stack

OWNER = "orchestrate"
"""Whom `/v1/models` names as the owner of roles, aliases and our own models."""
TOKEN_ENGINES = frozenset({"mlx", "llama-server", "vllm", "command"})
"""Engines that are started with the worker token as their key. Nobody else is told it."""
_UPSTREAM_NAMES: Mapping[str, str] = {"mlx-lm-server": "default_model"}
"""By the API of a helper: the name under which it answers with the one model that it was started with. Any other name
makes it load what the name stands for."""
SWAP_S = 60.0
"""What a swap takes besides draining and loading: the end of the old unit (up to 20 s), the start, the writing."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """What a declared endpoint says apart from who fills it."""

    name: str
    role: str
    settings: Settings
    weight: int = 1
    priority: int = 1
    drop_params: tuple[str, ...] = ()


AnyEndpoint = ServiceEndpoint | HelperEndpoint


def build_table(
    stack: Stack,
    routes: Routes | None,
    *,
    environ: Mapping[str, str],
    worker_token: str | None,
    replaced_since: Mapping[UnitId, float] | None = None,
) -> RoutingTable:
    """Build the table of a validated stack.

    Without `routes` no service runs. `environ` holds the helpers' keys; a key that is not set makes its endpoints
    misconfigured, not the table bad. `worker_token` goes to our own workers, and to engines that were started with it.
    `replaced_since` says when instances were first seen as being replaced, by the clock of the event loop: requests
    wait for a successor as long as who starts it does.
    """
    return _Builder(stack, routes, environ, worker_token, replaced_since or {}).table()


class _Builder:
    """Holds the inputs while the table is put together. Every list is walked once, however many services there are."""

    def __init__(
        self,
        stack: Stack,
        routes: Routes | None,
        environ: Mapping[str, str],
        worker_token: str | None,
        replaced_since: Mapping[UnitId, float],
    ) -> None:
        self._stack = stack
        self._replaced_since = replaced_since
        self._published = routes
        self._environ = environ
        self._worker_token = worker_token
        self._kinds = role_kinds(stack)
        self._settings = {name: settings_of(stack, role, self._kinds[name]) for name, role in stack.roles.items()}
        self._running: dict[ServiceName, list[tuple[Instance, EndpointIdentity]]] = {}
        for instance in routes.instances if routes else ():
            self._running.setdefault(instance.service, []).append((instance, identity_of(instance)))
        self._in_roles: dict[ServiceName | tuple[HelperName, str], Settings] = {}
        """Settings of the services and the (helper, model) pairs that roles name: of several roles the first one's."""
        self._of_models: dict[str, Settings] = {}
        self._helper_kinds: dict[tuple[HelperName, str], ModelKind] = {}
        """What helpers' models do: what the files say of them, else what the first role that names them does."""
        for name, role in stack.roles.items():
            for endpoint in role.endpoints.values():
                self._note(endpoint, self._settings[name])
                if isinstance(endpoint, HelperEndpoint):
                    place = (endpoint.helper, endpoint.model)
                    said = stack.helpers[endpoint.helper].models[endpoint.model].kind
                    self._helper_kinds.setdefault(place, said or self._kinds[name])

    def _note(self, endpoint: AnyEndpoint, settings: Settings) -> None:
        if isinstance(endpoint, ServiceEndpoint):
            self._in_roles.setdefault(endpoint.service, settings)
            self._of_models.setdefault(self._stack.services[endpoint.service].model, settings)
        else:
            self._in_roles.setdefault((endpoint.helper, endpoint.model), settings)
            self._of_models.setdefault(endpoint.model, settings)

    def table(self) -> RoutingTable:
        """Name everything that clients may ask for. A role hides an alias, an alias a service, and so on."""
        services: dict[str, Route] = {name: self._service(name) for name in self._stack.services}
        own = {name: self._role(name, role) for name, role in self._stack.roles.items()}
        ladders = {name: self._with_fallback(name, own, services, ()) for name in own}
        roles: dict[str, Route] = {name: self._with_context(route, ladders) for name, route in ladders.items()}
        models = self._models(own.values())
        endpoints = self._endpoints()
        named: dict[str, Route] = {**models, **endpoints, **services, **roles}
        aliases = {alias: self._alias(alias, names, named) for alias, names in self._stack.aliases.items()}
        routes = {**models, **endpoints, **services, **aliases, **roles}
        return RoutingTable(
            stack=self._stack.stack,
            generation=self._published.generation if self._published else 0,
            revision=self._published.revision if self._published else None,
            routes=routes,
            roles=tuple(roles),
            cards=self._cards(routes),
            body_limit=int(self._stack.gateway.body_limit_mib * MIB),
            digest=routing_digest(self._stack),
            fields=routing_fields(self._stack),
        )

    def _role(self, name: RoleName, role: Role) -> Route:
        tiers: dict[int, list[Place]] = {}
        for endpoint_name, endpoint in role.endpoints.items():
            tiers.setdefault(endpoint.priority, []).extend(self._places(endpoint_name, name, endpoint))
        route = self._route(name, (tiers[priority] for priority in sorted(tiers)), self._settings[name], name)
        return replace(route, is_skipped=role.fallback == "skip")

    def _route(self, name: str, tiers: Iterable[Iterable[Place]], settings: Settings, role: RoleName) -> Route:
        """Return the route of a role, or of one of its endpoints."""
        declared = self._stack.roles[role]
        return replace(
            _route(name, tiers, settings),
            kind=self._kinds[role],
            dimensions=declared.dimensions,
            may_restart=declared.midstream == "restart",
            may_continue=declared.midstream == "continue",
        )

    def _with_context(self, route: Route, ladders: Mapping[RoleName, Route]) -> Route:
        """Return a role's route, each rung of which knows who reads longer prompts than it."""
        name, below = RoleName(route.name), route.fallback
        if below is not None and isinstance(self._stack.roles[name].fallback, RoleFallback):
            below = self._with_context(below, ladders)
        return replace(route, fallback=below, context=self._context(name, ladders, ()))

    def _context(self, name: RoleName, ladders: Mapping[RoleName, Route], above: tuple[RoleName, ...]) -> Route | None:
        """Return who reads longer prompts than a role. A circle, which validation refuses, ends where it began."""
        longer = self._stack.roles[name].context_fallback
        if longer is None or longer in (*above, name):
            return None
        return replace(ladders[longer], context=self._context(longer, ladders, (*above, name)))

    def _with_fallback(
        self,
        name: RoleName,
        own: Mapping[RoleName, Route],
        services: Mapping[str, Route],
        above: tuple[RoleName, ...],
    ) -> Route:
        """Return a role's route with all its fallbacks. A circle, which validation refuses, ends where it began."""
        fallback = self._stack.roles[name].fallback
        match fallback:
            case LocalFallback():
                return replace(own[name], fallback=services[fallback.local])
            case RoleFallback() if fallback.role not in (*above, name):
                below = self._with_fallback(fallback.role, own, services, (*above, name))
                return replace(own[name], fallback=below)
            case _:
                return own[name]

    def _endpoints(self) -> dict[str, Route]:
        """Return a route for every endpoint; of two with one name the role that comes first wins."""
        routes: dict[str, Route] = {}
        for role_name, role in self._stack.roles.items():
            for name, endpoint in role.endpoints.items():
                if name not in routes:
                    places = self._places(name, role_name, endpoint)
                    routes[name] = self._route(name, [places], self._settings[role_name], role_name)
        return routes

    def _places(self, name: str, role: RoleName, endpoint: AnyEndpoint) -> list[Place]:
        settings = self._settings[role].with_first_token(endpoint.timeout_s)
        slot = _Slot(name, role, settings, endpoint.weight, endpoint.priority, endpoint.drop_params)
        if isinstance(endpoint, ServiceEndpoint):
            return self._instances(slot, endpoint.service)
        if self._kinds[role] == "reranking" and self._stack.helpers[endpoint.helper].api == "ollama":
            url = self._stack.helpers[endpoint.helper].url
            detail = f"helpers.{endpoint.helper}.api: Ollama has no reranking API"
            return [Missing(slot.name, slot.role, "cannot rerank", endpoint.model, url, detail, slot.priority)]
        return [self._helper(slot, endpoint.helper, endpoint.model)]

    def _instances(self, slot: _Slot, service: ServiceName) -> list[Place]:
        running = self._running.get(service)
        if not running:
            model = self._stack.services[service].model
            return [Missing(slot.name, slot.role, "not running", model, priority=slot.priority)]
        return [self._instance(slot, instance, identity) for instance, identity in running]

    def _instance(self, slot: _Slot, instance: Instance, identity: EndpointIdentity) -> Place:
        if instance.state != "ready":
            gone = Missing(slot.name, slot.role, instance.state, instance.model, instance.url, priority=slot.priority)
            return replace(gone, held_until=self._held_until(instance)) if instance.state == "replacing" else gone
        token = self._worker_token if instance.engine in TOKEN_ENGINES else None
        declared = self._stack.models.get(instance.model)
        target = _target(slot, identity, token, instance.upstream_model or instance.model)
        service = self._stack.services.get(instance.service)
        if service is not None and service.start == "on-demand":
            target = replace(target, is_on_demand=True, idle_stop_s=service.idle_stop_s)
        return replace(target, kind=declared.kind) if declared is not None and declared.kind != "chat" else target

    def _held_until(self, instance: Instance) -> float:
        """Return when the orchestrator, if it is still at work, has brought the successor or given it up."""
        since, service = self._replaced_since.get(instance.unit), self._stack.services.get(instance.service)
        if since is None or service is None:
            return math.inf
        return since + service.drain_s + service.ready_timeout_s + SWAP_S

    def _helper(self, slot: _Slot, helper: HelperName, model: str) -> Place:
        declared = self._stack.helpers[helper]
        token = None
        if declared.key is not None:
            try:
                token = declared.key.reveal(self._environ).strip()
            except KeyError as error:
                detail = f"helpers.{helper}.key: the environment variable {error.args[0]} is not set"
                return Missing(slot.name, slot.role, "misconfigured", model, declared.url, detail, slot.priority)
            if not token.isascii() or not token.isprintable():
                detail = f"helpers.{helper}.key: only printable ASCII characters can be sent in a header"
                return Missing(slot.name, slot.role, "misconfigured", model, declared.url, detail, slot.priority)
        identity = identity_at(declared.url, declared.api, model)
        target = _target(slot, identity, token, _UPSTREAM_NAMES.get(declared.api, model))
        max_batch = max_batch_of(declared.api, declared.max_batch)
        drop_params = tuple(dict.fromkeys((*declared.drop_params, *target.drop_params)))
        is_asked_apart = is_strict(declared.api, max_batch, drop_params)
        target = replace(target, kind=self._helper_kind(helper, model), max_batch=max_batch, is_strict=is_asked_apart)
        return replace(target, drop_params=drop_params)

    def _helper_kind(self, helper: HelperName, model: str) -> ModelKind:
        return self._helper_kinds.get((helper, model)) or self._stack.helpers[helper].models[model].kind or "chat"

    def _service(self, service: ServiceName) -> Route:
        declared = self._stack.services[service]
        model = self._stack.models.get(declared.model)
        kind: ModelKind = "chat" if model is None else model.kind
        settings = self._in_roles.get(service) or default_settings(kind, declared.replicas)
        route = _route(service, [self._instances(_Slot(service, "", settings), service)], settings)
        return replace(route, kind=kind)

    def _models(self, roles: Iterable[Route]) -> dict[str, Route]:
        """Return who serves each model: the roles' endpoints in their order, then services and helpers without a role.

        Fallbacks are left out: who asks for a model by its name wants that one.
        """
        placed: dict[str, list[list[Place]]] = {model: [] for model in self._model_names()}
        for route in roles:
            tiers: tuple[Sequence[Place], ...] = (*route.tiers, route.missing)
            for tier in tiers:
                for model, places in _by_model(tier).items():
                    placed.setdefault(model, []).append(places)
        kinds = self._model_kinds()
        settings = {model: self._of_models.get(model) or default_settings(kinds.get(model, "chat")) for model in placed}
        for service, declared in self._stack.services.items():
            if service not in self._in_roles:
                slot = _Slot(service, "", settings[declared.model])
                placed[declared.model].append(self._instances(slot, service))
        for helper, offered in self._stack.helpers.items():
            for model in offered.models:
                if (helper, model) not in self._in_roles:
                    placed[model].append([self._helper(_Slot(helper, "", settings[model]), helper, model)])
        return {
            model: replace(_route(model, placed[model], settings[model]), kind=kinds[model])
            for model in self._model_names()
        }

    def _model_kinds(self) -> dict[str, ModelKind]:
        """Return what the models do that clients may ask for by name; one of ours hides a helper's of the same name."""
        kinds: dict[str, ModelKind] = {}
        for helper, offered in self._stack.helpers.items():
            for model in offered.models:
                kinds.setdefault(model, self._helper_kind(helper, model))
        for service in self._stack.services.values():
            declared = self._stack.models.get(service.model)
            kinds[service.model] = "chat" if declared is None else declared.kind
        return kinds

    def _alias(self, alias: str, names: Sequence[str], named: Mapping[str, Route]) -> Route:
        return replace(_merged(alias, [named[name] for name in names if name in named]), is_alias=True)

    def _model_names(self) -> list[str]:
        offered = (model for helper in self._stack.helpers.values() for model in helper.models)
        return list(dict.fromkeys([*(service.model for service in self._stack.services.values()), *offered]))

    def _cards(self, routes: Mapping[str, Route]) -> tuple[Card, ...]:
        owners: dict[str, str] = {
            model: name for name, helper in self._stack.helpers.items() for model in helper.models
        }
        owners.update((service.model, OWNER) for service in self._stack.services.values())
        cards = [
            *(Card(role, OWNER, "role", routes[role].kind) for role in self._stack.roles),
            *(Card(alias, OWNER, "alias", routes[alias].kind) for alias in self._stack.aliases),
            *(Card(model, owners[model], "model", routes[model].kind) for model in self._model_names()),
        ]
        return tuple({card.id: card for card in reversed(cards)}.values())[::-1]


def _by_model(places: Sequence[Place]) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.model if isinstance(place, Missing) else place.identity.model, []).append(place)
    return found


def _merged(name: str, routes: Sequence[Route]) -> Route:
    """Return one route that walks several in their order, and behind them all their fallbacks in the same order."""
    tiers: list[Sequence[Place]] = []
    for route in routes:
        tiers.extend((*route.tiers, route.missing))
    attempts = max((route.attempts for route in routes), default=Limits().attempts)
    total_s = max((route.total_s for route in routes), default=Timeouts().total_s)
    queue = max((route.queue for route in routes), default=Limits().queue)
    queue_s = max((route.queue_s for route in routes), default=Timeouts().queue_s)
    settings = Settings(
        timeouts=Timeouts(total_s=total_s, queue_s=queue_s), limits=Limits(attempts=attempts, queue=queue)
    )
    below = [route.fallback for route in routes if route.fallback is not None]
    fallback = None if not below else below[0] if len(below) == 1 else _merged(below[0].name, below)
    return replace(
        _route(name, tiers, settings),
        fallback=fallback,
        kind=routes[0].kind if routes else "chat",
        dimensions=next((route.dimensions for route in routes if route.dimensions is not None), None),
        is_skipped=any(route.is_skipped for route in routes),
        context=next((route.context for route in routes if route.context is not None), None),
        may_restart=any(route.may_restart for route in routes),
        may_continue=any(route.may_continue for route in routes),
    )


def _target(slot: _Slot, identity: EndpointIdentity, token: str | None, upstream_model: str) -> Target:
    settings = slot.settings
    check = settings.health_check
    return Target(
        name=slot.name,
        role=slot.role,
        identity=identity,
        weight=slot.weight,
        token=token,
        breaker=settings.breaker,
        timeouts=settings.timeouts,
        max_in_flight=settings.limits.max_in_flight,
        upstream_model=upstream_model,
        priority=slot.priority,
        check_s=None if check is None else check.interval_s,
        rpm=settings.limits.rpm,
        hedge_s=settings.limits.hedge_s,
        is_strict=is_strict(identity.engine, drop_params=slot.drop_params),
        drop_params=slot.drop_params,
    )


def _route(name: str, tiers: Iterable[Iterable[Place]], settings: Settings) -> Route:
    """Sort places into what can be called, each endpoint once, and what cannot."""
    seen: set[EndpointIdentity] = set()
    missing: dict[tuple[str, str], Missing] = {}
    callable_tiers: list[tuple[Target, ...]] = []
    for tier in tiers:
        fresh: list[Target] = []
        for place in tier:
            if isinstance(place, Missing):
                missing.setdefault((place.name, place.url), place)
            elif place.identity not in seen:
                seen.add(place.identity)
                fresh.append(place)
        if fresh:
            callable_tiers.append(tuple(fresh))
    return Route(
        name,
        tuple(callable_tiers),
        tuple(missing.values()),
        settings.limits.attempts,
        settings.timeouts.total_s,
        is_strict=any(target.is_strict for tier in callable_tiers for target in tier),
        queue=settings.limits.queue,
        queue_s=settings.timeouts.queue_s,
        has_replicas=any(len(tier) > 1 for tier in callable_tiers),
    )

"""Pure: Stack -> the units that should run, where, and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from schemas.base import ModelName, NodeName, RoleName, ServiceName, SlotId, StackName, UnitId
from schemas.hashing import routing_fields
from schemas.model import Model
from schemas.node import Node
from schemas.stack import LocalFallback, Role, RoleFallback, Service, ServiceEndpoint, Stack
from schemas.unit import GatewaySpec, ModelSpec, WorkerSpec, unit_id

GATEWAY_READY_TIMEOUT_S = 30.0
GATEWAY_DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class DesiredUnit:
    """One unit that should run, with the settings of its life cycle that are no part of its identity."""

    spec: WorkerSpec | GatewaySpec
    id: UnitId
    update: Literal["auto", "surge", "swap"]
    memory_gib: float | None
    """What it needs; None where nothing was declared."""
    ready_timeout_s: float
    drain_s: float

    @property
    def node(self) -> NodeName:
        """Return the node that it runs on."""
        return self.spec.node


@dataclass(frozen=True, slots=True)
class RoleShape:
    """How much a role can lose: what the plan says about routing."""

    services: tuple[ServiceName, ...]
    """The services among its endpoints."""
    helpers: int
    """How many of its endpoints are helpers."""
    fallback: str
    """`none`, or what answers when no endpoint can."""

    @property
    def endpoints(self) -> int:
        """Return how many endpoints it has in all."""
        return len(self.services) + self.helpers


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be true of one stack."""

    stack: StackName
    owner: str
    """The configuration directory, absolute; a stack belongs to one."""
    overrides: tuple[str, ...] = ()
    units: Mapping[SlotId, DesiredUnit] = field(default_factory=dict)
    nodes: Mapping[NodeName, Node] = field(default_factory=dict)
    roles: Mapping[RoleName, RoleShape] = field(default_factory=dict)
    routing: Mapping[str, str] = field(default_factory=dict)
    """The routing fields, see `schemas.hashing.routing_fields`."""
    files: str | None = None
    """The directory that is composed instead of the owner's: the files of an earlier generation, after a rollback."""


def expand(stack: Stack, owner: str, overrides: tuple[str, ...] = ()) -> Desired:
    """Return the units and the routing that a stack asks for, the gateway's unit included."""
    gateway = GatewaySpec(node=stack.gateway.node, bind=stack.gateway.bind, port=stack.gateway.port)
    units = [
        DesiredUnit(gateway, unit_id(gateway), "surge", None, GATEWAY_READY_TIMEOUT_S, GATEWAY_DRAIN_S),
        *(unit for name, service in stack.services.items() for unit in _service_units(stack, name, service)),
    ]
    return Desired(
        stack=stack.stack,
        owner=owner,
        overrides=overrides,
        units={unit.spec.slot: unit for unit in sorted(units, key=lambda unit: unit.spec.slot)},
        nodes={name: node for name, node in sorted(stack.nodes.items()) if node.reach != "none"},
        roles={name: _shape(role) for name, role in stack.roles.items()},
        routing=routing_fields(stack),
    )


def nothing(stack: StackName, owner: str, nodes: Mapping[NodeName, Node]) -> Desired:
    """Return the desired state of a stack that should not run at all, for `down`."""
    return Desired(stack=stack, owner=owner, nodes=nodes)


def _service_units(stack: Stack, name: ServiceName, service: Service) -> list[DesiredUnit]:
    model = stack.models[service.model]
    share = None if model.memory_gib is None else model.memory_gib / len(service.nodes)
    specs = [
        WorkerSpec(
            node=node,
            service=name,
            replica=replica,
            rank=rank,
            model=_model_spec(service.model, model),
            port=service.port,
            max_batch=service.max_batch,
            max_waiting=service.max_waiting,
        )
        for replica in range(service.replicas)
        for rank, node in enumerate(service.nodes)
    ]
    return [
        DesiredUnit(spec, unit_id(spec), service.update, share, service.ready_timeout_s, service.drain_s)
        for spec in specs
    ]


def _model_spec(name: ModelName, model: Model) -> ModelSpec:
    return ModelSpec(
        name=name, source=model.source, revision=model.revision, digest=model.digest, context=model.context
    )


def _shape(role: Role) -> RoleShape:
    services = tuple(e.service for e in role.endpoints.values() if isinstance(e, ServiceEndpoint))
    return RoleShape(services, len(role.endpoints) - len(services), _fallback(role.fallback))


def _fallback(fallback: str | LocalFallback | RoleFallback) -> str:
    match fallback:
        case LocalFallback(local=service):
            return f"service {service}"
        case RoleFallback(role=role):
            return f"role {role}"
        case "skip":
            return "skip"
        case _:
            return "none"

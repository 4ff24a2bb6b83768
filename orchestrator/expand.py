"""Pure: Stack -> the units that should run, where, and what each of them needs.

A service without `sharding` runs `replicas` copies, copy i on `nodes[i % len(nodes)]`. A service with `sharding` runs
`replicas` groups, each with one rank on every entry of `nodes`, in that order. A stack with `heal: true` has a watcher
on its first local node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.addresses import called_at
from orchestrator.footprint import needed_memory
from orchestrator.ladders import RoleShape, role_shape
from schemas.base import HelperName, ModelName, NodeName, RoleName, ServiceName, SlotId, StackName, UnitId
from schemas.hashing import routing_fields
from schemas.kinds import role_kinds
from schemas.model import Model
from schemas.node import Node
from schemas.stack import Canary, Helper, KeysFile, Service, Sharding, Stack
from schemas.unit import AnyUnitSpec, EngineSpec, GatewaySpec, GroupSpec, ModelSpec, WatcherSpec, WorkerSpec, unit_id

_Copy = tuple[ServiceName, int]
"""A service and the number of its replica."""
ENCODER_BATCH = 128
"""Texts at once of embedding and reranking models, where the stack says nothing: the worker's own default."""
GATEWAY_READY_TIMEOUT_S = 30.0
GATEWAY_DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class DesiredUnit:
    """One unit that should run, with the settings of its life cycle that are no part of its identity."""

    spec: AnyUnitSpec
    id: UnitId
    update: Literal["auto", "surge", "swap"]
    memory_gib: float | None
    """What it needs; None where nothing was declared and nothing can be estimated. Of a rank: its share."""
    ready_timeout_s: float
    drain_s: float
    is_estimate: bool = False
    """`memory_gib` was reckoned from the size of the weights."""
    canary: Canary | None = None
    """What a rank's group is asked before it is routed to; None for no group, and where the stack wants none."""
    is_moved: bool = False
    """It stands in for a copy whose own node is assumed to be lost, and runs only where there is room for it."""

    @property
    def node(self) -> NodeName:
        """Return the node that it runs on."""
        return self.spec.node


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be true of one stack."""

    stack: StackName
    owner: str
    """The configuration directory, absolute; a stack belongs to one."""
    overrides: tuple[str, ...] = ()
    units: Mapping[SlotId, DesiredUnit] = field(default_factory=dict)
    nodes: Mapping[NodeName, Node] = field(default_factory=dict)
    """Where units run or may still run: the stack's nodes that commands reach, and those that have left it."""
    roles: Mapping[RoleName, RoleShape] = field(default_factory=dict)
    routing: Mapping[str, str] = field(default_factory=dict)
    """The routing fields, see `schemas.hashing.routing_fields`."""
    helpers: Mapping[HelperName, Helper] = field(default_factory=dict)
    models: Mapping[ModelName, Model] = field(default_factory=dict)
    left: frozenset[NodeName] = frozenset()
    """The nodes that have left the files and are looked at because the stack was applied to them before."""
    files: str | None = None
    """The directory that is composed instead of the owner's: the files of an earlier generation, after a rollback."""
    drained: tuple[str, ...] = ()
    """Nodes, services, slots and units that the gateway is to send nothing, as somebody named them."""
    keys_file: str | None = None
    """The keys file, below the owner's directory; None where the gateway asks for no keys."""
    notes: tuple[str, ...] = ()
    """What older shapes of the files were read as."""


def expand(
    stack: Stack,
    owner: str,
    overrides: tuple[str, ...] = (),
    *,
    remembered: Mapping[NodeName, Node] | None = None,
    lost: Collection[NodeName] = (),
) -> Desired:
    """Return the units and the routing that a stack asks for, the gateway's unit included.

    `remembered` are the nodes that the stack was last applied to: those that have left the files are still looked at.
    On a node in `lost` no copy is put for which the service names another node with its port.
    """
    moved = _moved(stack, lost)
    kinds = role_kinds(stack)
    models = {name: _model_spec(name, model) for name, model in stack.models.items()}
    gateway = GatewaySpec(node=stack.gateway.node, bind=stack.gateway.bind, port=stack.gateway.port)
    units = [
        DesiredUnit(gateway, unit_id(gateway), "surge", None, GATEWAY_READY_TIMEOUT_S, GATEWAY_DRAIN_S),
        *_watcher(stack),
        *(
            unit
            for name, service in stack.services.items()
            for unit in _service_units(stack, name, service, models, moved)
        ),
    ]
    nodes = {name: node for name, node in sorted(stack.nodes.items()) if node.reach != "none"}
    left = {
        name: node
        for name, node in sorted((remembered or {}).items())
        if name not in stack.nodes and not any(_is_one_machine(node, other) for other in nodes.values())
    }
    return Desired(
        stack=stack.stack,
        owner=owner,
        overrides=overrides,
        units={unit.spec.slot: unit for unit in sorted(units, key=lambda unit: unit.spec.slot)},
        nodes={**nodes, **left},
        roles={name: role_shape(role, kinds[name]) for name, role in stack.roles.items()},
        routing=routing_fields(stack),
        helpers=dict(sorted(stack.helpers.items())),
        models=stack.models,
        left=frozenset(left),
        keys_file=stack.gateway.auth.keys_file if isinstance(stack.gateway.auth, KeysFile) else None,
    )


def _is_one_machine(one: Node, other: Node) -> bool:
    """Tell whether two nodes are certainly one machine: a node that was renamed is looked at by its new name alone."""
    if one.reach != other.reach or one.reach == "none":
        return False
    return one.reach == "local" or (one.host is not None and (one.host, one.user) == (other.host, other.user))


def nothing(stack: StackName, owner: str, nodes: Mapping[NodeName, Node]) -> Desired:
    """Return the desired state of a stack that should not run at all, for `down`."""
    return Desired(stack=stack, owner=owner, nodes={k: v for k, v in sorted(nodes.items()) if v.reach != "none"})


def _watcher(stack: Stack) -> Iterator[DesiredUnit]:
    local = sorted(name for name, node in stack.nodes.items() if node.reach == "local")
    if stack.heal and local:
        spec = WatcherSpec(node=local[0])
        yield DesiredUnit(spec, unit_id(spec), "swap", None, GATEWAY_READY_TIMEOUT_S, 0.0)


def _moved(stack: Stack, lost: Collection[NodeName]) -> dict[_Copy, NodeName]:
    """Return where copies go whose own nodes are lost: the next that their service names.

    A port that the stack asks for is used once on a node: a copy that finds it used everywhere stays where it is.
    """
    if not lost:
        return {}
    services = stack.services
    homes = {
        (name, replica): service.nodes[replica % len(service.nodes)]
        for name, service in services.items()
        for replica in range(service.replicas)
    }
    used = {(stack.gateway.node, stack.gateway.port)}
    used |= {(home, port) for (name, _), home in homes.items() if home not in lost and (port := services[name].port)}
    moved: dict[_Copy, NodeName] = {}
    for (name, replica), home in homes.items():
        nodes, port = services[name].nodes, services[name].port
        if home not in lost or services[name].sharding is not None:
            continue
        in_turn = nodes[replica % len(nodes) :] + nodes[: replica % len(nodes)]
        node = next((node for node in in_turn if node not in lost and (node, port) not in used), None)
        if node is not None:
            moved[name, replica] = node
            used |= {(node, port)} if port else set()
    return moved


def _service_units(
    stack: Stack,
    name: ServiceName,
    service: Service,
    models: Mapping[ModelName, ModelSpec],
    moved: Mapping[_Copy, NodeName],
) -> Iterator[DesiredUnit]:
    model = models[service.model]
    draft = None if service.draft is None else models[service.draft]
    for replica in range(service.replicas):
        if service.sharding is not None:
            specs: list[WorkerSpec | EngineSpec] = list(_ranks(stack, name, service, service.sharding, replica, model))
        else:
            node = moved.get((name, replica)) or service.nodes[replica % len(service.nodes)]
            specs = [_single(stack, name, service, replica, node, model, draft)]
        for spec in specs:
            memory, is_estimate = needed_memory(spec, stack.models, {})
            yield DesiredUnit(
                spec,
                unit_id(spec),
                service.update,
                memory,
                service.ready_timeout_s,
                service.drain_s,
                is_estimate=is_estimate,
                is_moved=(name, replica) in moved,
                canary=_canary(service),
            )


def _canary(service: Service) -> Canary | None:
    asked = None if service.sharding is None else service.sharding.canary
    return asked if isinstance(asked, Canary) else None


def _single(
    stack: Stack,
    name: ServiceName,
    service: Service,
    replica: int,
    node: NodeName,
    model: ModelSpec,
    draft: ModelSpec | None,
) -> WorkerSpec | EngineSpec:
    host = called_at(node, stack.gateway.node, stack.nodes)
    if service.engine == "mlx":
        return WorkerSpec(
            node=node,
            service=name,
            replica=replica,
            rank=0,
            model=model,
            port=service.port,
            max_batch=_batch(service, model),
            max_waiting=service.max_waiting,
            prompt_cache_gib=service.prompt_cache_gib,
            draft=draft,
            draft_tokens=service.draft_tokens,
            on_demand=service.start == "on-demand",
            idle_stop_s=service.idle_stop_s,
            host=host,
        )
    if service.engine == "ollama":
        raise ValueError(f"services.{name}.engine: an Ollama box is a helper")  # validation has refused it
    return EngineSpec(
        node=node,
        service=name,
        replica=replica,
        engine=service.engine,
        model=model,
        port=service.port,
        max_batch=_batch(service, model),
        args=service.args,
        host=host,
    )


def _batch(service: Service, model: ModelSpec) -> int:
    """Return how much is computed at once: texts to encode take less memory than answers, so that more of them fit."""
    if model.kind == "chat" or "max_batch" in service.model_fields_set:
        return service.max_batch
    return ENCODER_BATCH


def _ranks(
    stack: Stack, name: ServiceName, service: Service, sharding: Sharding, replica: int, model: ModelSpec
) -> Iterator[WorkerSpec]:
    group = GroupSpec(backend=sharding.backend, strategy=sharding.strategy, split=sharding.split, nodes=service.nodes)
    for rank, node in enumerate(service.nodes):
        yield WorkerSpec(
            node=node,
            service=name,
            replica=replica,
            rank=rank,
            model=model,
            port=service.port,  # in every rank, so that all ids of a group change together; rank 0 listens on it
            max_batch=service.max_batch,
            max_waiting=service.max_waiting,
            prompt_cache_gib=service.prompt_cache_gib,
            group=group,
            host=called_at(node, stack.gateway.node, stack.nodes) if rank == 0 else None,
        )


def _model_spec(name: ModelName, model: Model) -> ModelSpec:
    return ModelSpec(
        name=name,
        source=model.source,
        revision=model.revision,
        digest=model.digest,
        context=model.context,
        kind=model.kind,
    )

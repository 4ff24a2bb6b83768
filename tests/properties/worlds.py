"""Hypothesis strategies for stacks, and for worlds in which an earlier version of them is half applied.

Three machines, single units, replicas, engines, sharded groups over one and several machines, a watcher, a helper. What
is there may be whole, partial, of two launches, silent, still loading, half routed, ended once or in a crash loop; a
machine may not answer, have no environment, or not tell its memory; something may be drained. Only what cannot be is
left out: nobody has more memory than there is, and no two processes one port.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from orchestrator.expand import Desired, DesiredUnit, expand, nothing
from orchestrator.memory import with_estimates
from orchestrator.observed import (
    HelperSeen,
    HelperSilent,
    ModelFacts,
    Observed,
    ObservedUnit,
    PortHolder,
    Reachable,
    Unreachable,
)
from orchestrator.policy import PlanPolicy
from schemas.admin import ConfigReport
from schemas.base import HelperName, ModelName, NodeName, StackName, UnitId
from schemas.routes import Instance, Routes
from schemas.stack import Stack
from schemas.unit import EngineSpec, GatewaySpec, WatcherSpec, WorkerSpec

OWNER = "/conf"
MEMORY_GIB = 16.0
STRANGER_PORT = 18101
ADDRESSES = {"alpha": "10.0.0.1", "beta": "10.0.0.2", "gamma": "10.0.0.3"}
MODEL_GIB = {"m1": 3.0, "m2": 5.0, "m3": None}
GIB = 1 << 30


def stack_of(
    services: Mapping[str, Mapping[str, object]],
    gateway_port: int = 8000,
    aliases: list[str] | None = None,
    nodes: Mapping[str, Mapping[str, object]] | None = None,
    **more: object,
) -> Stack:
    """Return a stack with these services, each with a model `m<n>` that needs 1 + 2n GiB."""
    models = {str(service["model"]) for service in services.values()} | {"m1"}
    two = {name: {"reach": "ssh", "host": f"{name}.lan", "memory_gib": MEMORY_GIB} for name in ("alpha", "beta")}
    tree = {
        "stack": "world",
        "nodes": nodes or two,
        "models": {name: {"source": f"path:/models/{name}", "memory_gib": 1.0 + 2 * int(name[1:])} for name in models},
        "services": services,
        "roles": {"chat": {"endpoints": {"any": {"service": next(iter(services), "none")}}}},
        "aliases": {"alias": aliases} if aliases else {},
        "gateway": {"node": "alpha", "port": gateway_port},
        **more,
    }
    return Stack.model_validate_json(json.dumps(tree))


def address(node: str, gateway: str = "alpha", reach: str = "ssh") -> str:
    """Return where the gateway calls a node's units: by name in a stack of `stack_of`, by number in a drawn one."""
    if node == gateway:
        return "127.0.0.1"
    return f"{node}.lan" if reach == "ssh" else ADDRESSES[node]


# -- what is wanted --------------------------------------------------------------------------------------------------


def fleet_of(
    services: Mapping[str, Mapping[str, object]],
    gateway: Mapping[str, object],
    aliases: list[str] | None = None,
    **more: object,
) -> Stack:
    """Return a stack over alpha (local), beta and gamma; m1 and m2 declare their memory, m3 does not."""
    nodes = {
        name: {
            "reach": "local" if name == "alpha" else "ssh",
            "host": f"{name}.lan",
            "addresses": {"lan": lan},
            "memory_gib": MEMORY_GIB,
            "rdma": {peer: "rdma_en1" for peer in ADDRESSES if peer != name},
        }
        for name, lan in ADDRESSES.items()
    }
    models = {
        name: {"source": f"path:/models/{name}"} | ({} if memory is None else {"memory_gib": memory})
        for name, memory in MODEL_GIB.items()
    }
    return stack_of(services, aliases=aliases, nodes=nodes, models=models, gateway=gateway, **more)


_common = {
    "model": st.sampled_from(["m1", "m1", "m2", "m3"]),
    "update": st.sampled_from(["auto", "auto", "surge", "swap"]),
    "max_batch": st.sampled_from([8, 4]),
}
_node = st.sampled_from(sorted(ADDRESSES))
_single = st.fixed_dictionaries(
    {**_common, "nodes": st.lists(_node, min_size=1, max_size=1), "port": st.sampled_from([None, None, 18150, 18151])}
)
_copies = st.fixed_dictionaries(
    {
        **_common,
        "nodes": st.lists(_node, min_size=1, max_size=3, unique=True),
        "replicas": st.integers(min_value=2, max_value=3),
    }
)
_engine = st.fixed_dictionaries(
    {
        **_common,
        "nodes": st.lists(_node, min_size=1, max_size=1),
        "engine": st.just("command"),
        "args": st.sampled_from([{"command": "serve {port}"}, {"command": "serve {model_path} {port}"}]),
    }
)
_group = st.fixed_dictionaries(
    {
        **_common,
        "nodes": st.sampled_from(
            [["alpha"] * 3, ["alpha", "beta"], ["beta", "gamma"], ["beta", "alpha", "gamma"], ["gamma", "gamma"]]
        ),
        "sharding": st.sampled_from(
            [{"backend": "ring", "strategy": "tensor"},
             {"backend": "ring", "strategy": "pipeline", "canary": "off"},
             {"backend": "nccl", "strategy": "tensor"}]
        ),
        "replicas": st.sampled_from([1, 1, 2]),
        "port": st.none(),
    }
)  # fmt: skip
_services = st.fixed_dictionaries(
    {"titan": st.one_of(_group, _single)},
    optional={"coder": st.one_of(_single, _copies, _engine, _group), "tiny": st.one_of(_single, _copies, _group)},
)


def _ports_differ(services: Mapping[str, Mapping[str, object]]) -> bool:
    asked = [(str(s["nodes"]), s["port"]) for s in services.values() if s.get("port") is not None]
    return len(set(asked)) == len(asked)


_HELPERS = {"rtx": {"url": "http://10.0.0.9:11434", "api": "ollama", "models": {"nomic:1": {"ensure": "present"}}}}
stacks = st.builds(
    fleet_of,
    _services.filter(_ports_differ),
    st.fixed_dictionaries(
        {"node": st.sampled_from(["alpha", "alpha", "beta"]), "port": st.sampled_from([8000, 8000, 8001])}
    ),
    aliases=st.sampled_from([None, ["coder"]]),
    heal=st.booleans(),
    helpers=st.sampled_from([{}, _HELPERS]),
)
NODES = fleet_of({}, {"node": "alpha"}).nodes


def edited(stack: Stack) -> Stack:
    """Return a stack in which every unit of a model is another one, at the same places."""
    services = {
        name: service.model_copy(update={"max_batch": 12 - service.max_batch})
        for name, service in stack.services.items()
    }
    return stack.model_copy(update={"services": services})


def _desired(stack: Stack, lost: frozenset[NodeName]) -> Desired:
    return expand(stack, OWNER, lost=lost)


# -- what is there ---------------------------------------------------------------------------------------------------

STATES = (
    "absent", "ended", "crashed", "looping", "starting", "ready", "published", "published", "published", "published",
    "draining", "replacing", "silent",
)  # fmt: skip
GROUP_STATES = (*STATES, "partial", "lost rank", "two launches", "two launches")


@dataclass
class _Making:
    """A world while it is made."""

    units: dict[NodeName, dict[UnitId, ObservedUnit]] = field(default_factory=dict)
    used: dict[NodeName, set[int]] = field(default_factory=dict)
    free: dict[NodeName, float] = field(default_factory=dict)
    instances: dict[UnitId, Instance] = field(default_factory=dict)
    launches: int = 0

    def take(self, node: NodeName, alive: bool) -> int:
        """Return a free port; that of a dead unit is free again afterwards."""
        port = next(p for p in range(18100, 18150) if p not in self.used[node])
        self.used[node] |= {port} if alive else set()
        return port


@dataclass(frozen=True)
class Case:
    """What is wanted, what is there, and how much of the difference is to be dealt with."""

    desired: Desired
    world: Observed
    policy: PlanPolicy


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a desired state, and a world left behind by it and one or two other stacks at some moment of their life."""
    unreachable = NodeName(draw(st.sampled_from(["", "", "", "alpha", "beta", "gamma"])))
    is_lost = bool(unreachable) and draw(st.booleans())
    lost = frozenset({unreachable}) if is_lost else frozenset()
    goes_down = draw(st.integers(0, 9)) == 0
    wanted = draw(stacks)
    desired = nothing(StackName("world"), OWNER, NODES) if goes_down else _desired(wanted, lost)
    facts = draw(st.sampled_from([{}, {ModelName("m3"): ModelFacts("llama", weights_bytes=2 * GIB)}]))
    choices = (wanted, edited(wanted)), (edited(wanted), draw(stacks)), (draw(stacks), wanted)
    past_stacks = draw(st.sampled_from(choices))
    pasts = [with_estimates(expand(stack, OWNER), facts) for stack in past_stacks]
    making = _Making()
    for name in NODES:
        making.units[name], making.used[name] = {}, {STRANGER_PORT}
        making.free[name] = MEMORY_GIB - draw(st.sampled_from([0.0, 0.0, 4.0, 10.0]))
    for past in pasts:
        groups: dict[str, list[DesiredUnit]] = {}
        for unit in past.units.values():
            groups.setdefault(unit.spec.slot.rpartition(".")[0], []).append(unit)
        for units in groups.values():
            place(making, units, draw(st.sampled_from(STATES if len(units) == 1 else GROUP_STATES)), past, draw)
    policy = PlanPolicy(
        targets=draw(st.sampled_from([(), (), (), ("alpha",), ("gateway",)])),
        assume_lost=lost,
        heals=draw(st.booleans()),
    )
    kept = draw(st.sampled_from([frozenset(), frozenset({(ModelName("m1"), 4096)})]))
    world = replace(_observed(making, unreachable, pasts, draw), facts=facts, references=kept)
    if world.routes is not None and desired.units:
        drained = draw(st.sampled_from([(), (), ("titan",), ("coder-0",), ("beta",)]))
        desired = replace(desired, drained=drained)
        world = replace(world, routes=world.routes.model_copy(update={"drained": drained}))
    return Case(desired, world, policy)


def place(making: _Making, units: list[DesiredUnit], state: str, past: Desired, draw: st.DrawFn) -> None:
    """Put one slot of an earlier stack into the world, in some state, if there is room for it."""
    units = sorted(units, key=lambda unit: unit.spec.rank if isinstance(unit.spec, WorkerSpec) else 0)
    if state == "absent" or any(unit.id in making.units[unit.node] for unit in units):
        return
    if not isinstance(units[0].spec, WorkerSpec | EngineSpec) and state in ("draining", "replacing"):
        state = "ready"
    dead = {"partial": len(units) - 1, "lost rank": draw(st.integers(0, len(units) - 1))}.get(state)
    is_loaded = state not in ("starting", "ended", "crashed", "looping")
    making.launches += 1
    launches = [f"l{making.launches}"] * len(units)
    if state == "two launches":
        launches[-1] = "older"
    placed = []
    for rank, (unit, launch) in enumerate(zip(units, launches, strict=True)):
        alive = state not in ("ended", "crashed", "looping") and rank != dead
        if state == "partial" and rank == dead:
            continue
        spec = unit.spec
        asked = None if isinstance(spec, WatcherSpec) else spec.port
        if alive and rank == 0 and asked is not None and asked in making.used[unit.node]:
            return  # somebody else has it: this could not have been started then
        if alive and is_loaded and (unit.memory_gib or 0.0) > making.free[unit.node]:
            return
        is_rank = isinstance(spec, WorkerSpec) and spec.group is not None
        has_http = rank == 0 and not isinstance(spec, WatcherSpec)
        http = (asked or making.take(unit.node, alive)) if has_http else None
        if alive:
            making.free[unit.node] -= (unit.memory_gib or 0.0) if is_loaded else 0.0
            making.used[unit.node] |= {http} if http is not None else set()
        crashes = {"crashed": (1.0, 4.0), "looping": (1.0, 11.0, 31.0, 80.0, 200.0)}.get(state, ())
        placed.append(
            ObservedUnit(
                unit.id,
                unit.node,
                alive=alive,
                ready=alive and is_loaded,
                phase="running" if alive else "exited",
                spec=spec,
                port=http,
                owner=OWNER,
                exit=None if alive else "exit code 1",
                launch=launch if is_rank else None,
                link_port=making.take(unit.node, alive) if is_rank else None,
                control_port=making.take(unit.node, alive) if is_rank and rank == 0 else None,
                silent_s=30.0 if alive and state == "silent" and rank == len(units) - 1 else 0.0,
                crashes_s=crashes,
            )
        )
    for unit in placed:
        making.units[unit.node][unit.id] = unit
    if state in ("published", "draining", "replacing", "silent", "lost rank", "two launches"):
        _route(making, placed, units, past, state)


def _route(making: _Making, placed: list[ObservedUnit], units: list[DesiredUnit], past: Desired, state: str) -> None:
    first = next((unit for unit in placed if unit.id == units[0].id), None)
    if first is None or not isinstance(first.spec, WorkerSpec | EngineSpec):
        return
    gateway = past.units[next(slot for slot in past.units if slot.startswith("gateway"))].node
    engine = first.spec.engine if isinstance(first.spec, EngineSpec) else "mlx"
    making.instances[first.id] = Instance(
        unit=first.id,
        node=first.node,
        service=first.spec.service,
        model=first.spec.model.name,
        url=f"http://{address(first.node, gateway, 'lan')}:{first.port}",
        state=state if state in ("draining", "replacing") else "ready",  # type: ignore[arg-type]
        engine=engine,
        upstream_model="default_model" if engine == "mlx-lm-server" else None,
    )


def _observed(making: _Making, unreachable: NodeName, pasts: list[Desired], draw: st.DrawFn) -> Observed:
    bare = draw(st.sampled_from(["", "", "beta", "gamma"]))
    mute = draw(st.sampled_from(["", "", "", "beta"]))
    nodes: dict[NodeName, Reachable | Unreachable] = {}
    for name, units in making.units.items():
        if name == unreachable:
            nodes[name] = Unreachable("timed out")
            continue
        nodes[name] = Reachable(
            units,
            {port: _holder(port, units) for port in sorted(making.used[name])},
            memory_gib=MEMORY_GIB,
            memory_available_gib=None if name == mute else making.free[name],
            is_provisioned=name != bare,
        )
    seen = [unit for node in nodes.values() if isinstance(node, Reachable) for unit in node.units.values()]
    gateways = [unit for unit in seen if isinstance(unit.spec, GatewaySpec) and unit.ready and not unit.silent_s]
    report = report_of(draw(st.sampled_from(pasts)).routing) if gateways else None
    helper = draw(st.sampled_from([HelperSilent("refused"), HelperSeen("ollama"), None]))
    return Observed(
        nodes,
        draw(st.sampled_from([Routes(stack="world", generation=1, instances=tuple(making.instances.values())), None])),
        report,
        helpers={} if helper is None else {HelperName("rtx"): helper},
    )


def _holder(port: int, units: Mapping[UnitId, ObservedUnit]) -> PortHolder:
    owner = next((u for u in units.values() if u.alive and port in (u.port, u.link_port, u.control_port)), None)
    return PortHolder(4242, "python", (StackName("world"), owner.id) if owner else None)


def report_of(routing: Mapping[str, str]) -> ConfigReport:
    """Return what a gateway that serves these routing fields says."""
    return ConfigReport(
        stack="world",
        generation=1,
        revision=None,
        routing_digest="",
        routing=routing,
        is_current=True,
        loaded_at=0.0,
        reloads=1,
        failed_reloads=0,
        pid=1,
        endpoints=(),
    )


def losing(observed: Observed, unit: UnitId, memory_gib: float = 0.0) -> Observed:
    """Return the world after one unit was killed from outside; its node has so much more memory then."""
    nodes = dict(observed.nodes)
    for name, node in observed.nodes.items():
        if isinstance(node, Reachable) and unit in node.units:
            before = node.units[unit]
            dead = replace(before, alive=False, ready=False, phase="exited", exit="killed by SIGKILL")
            free = node.memory_available_gib
            back = None if free is None else free + (memory_gib if before.ready else 0.0)
            nodes[name] = replace(node, units={**node.units, unit: dead}, memory_available_gib=back)
    after = replace(observed, nodes=nodes)
    gateways = [u for u in after.units() if u.alive and u.ready and isinstance(u.spec, GatewaySpec)]
    return after if gateways else replace(after, gateway=None)

"""Hypothesis strategies for stacks, and for worlds in which an earlier version of them is half applied."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from orchestrator.expand import Desired, DesiredUnit, expand, nothing
from orchestrator.observed import Observed, ObservedUnit, PortHolder, Reachable, Unreachable
from schemas.admin import ConfigReport
from schemas.base import NodeName, StackName, UnitId
from schemas.routes import Instance, Routes
from schemas.stack import Stack
from schemas.unit import GatewaySpec

OWNER = "/conf"
NODES = ("alpha", "beta")
MEMORY_GIB = 16.0
STRANGER_PORT = 18101


def address(node: str) -> str:
    """Return where the gateway, which runs on alpha, calls a node's units."""
    return "127.0.0.1" if node == "alpha" else f"{node}.lan"


def stack_of(
    services: dict[str, dict[str, object]], gateway_port: int = 8000, aliases: list[str] | None = None
) -> Stack:
    """Return a stack with these services, each with a model of the same name as its `model`."""
    models = {str(service["model"]) for service in services.values()} | {"m1"}
    tree = {
        "stack": "world",
        "nodes": {name: {"reach": "ssh", "host": f"{name}.lan", "memory_gib": MEMORY_GIB} for name in NODES},
        "models": {name: {"source": f"path:/models/{name}", "memory_gib": 1.0 + 2 * int(name[1:])} for name in models},
        "services": services,
        "roles": {"chat": {"endpoints": {"any": {"service": next(iter(services), "none")}}}},
        "aliases": {"alias": aliases} if aliases else {},
        "gateway": {"node": "alpha", "port": gateway_port},
    }
    import json

    return Stack.model_validate_json(json.dumps(tree))


_services = st.dictionaries(
    st.sampled_from(["coder", "titan", "tiny"]),
    st.fixed_dictionaries(
        {
            "model": st.sampled_from(["m1", "m2"]),
            "nodes": st.sampled_from([["alpha"], ["beta"]]),
            "port": st.sampled_from([None, None, 18150, 18151]),
            "update": st.sampled_from(["auto", "surge", "swap"]),
        }
    ),
    max_size=3,
)


def _ports_differ(services: dict[str, dict[str, object]]) -> bool:
    asked = [(str(s["nodes"]), s["port"]) for s in services.values() if s["port"] is not None]
    return len(set(asked)) == len(asked)


stacks = st.builds(
    stack_of,
    _services.filter(_ports_differ),
    st.sampled_from([8000, 8000, 8001]),
    st.sampled_from([None, ["coder"], ["titan", "coder"]]),
)
desires = stacks.map(lambda stack: expand(stack, OWNER)) | st.just(
    nothing(StackName("world"), OWNER, stack_of({}).nodes)
)
STATES = ("absent", "ended", "starting", "ready", "published", "draining")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Desired, Observed]:
    """Draw what is wanted, and a world left behind by one or two earlier stacks at some moment of their application."""
    desired = draw(desires)
    earlier = [desired, *draw(st.lists(desires, min_size=1, max_size=2))]
    units: dict[NodeName, dict[UnitId, ObservedUnit]] = {NodeName(name): {} for name in NODES}
    instances: dict[UnitId, Instance] = {}
    used: dict[NodeName, set[int]] = {NodeName(name): {STRANGER_PORT} for name in NODES}
    for past in earlier:
        for wanted in past.units.values():
            state = draw(st.sampled_from(STATES))
            if state != "absent" and wanted.id not in units[wanted.node]:
                _place(wanted, state, units, used, instances)
    gateway_alive = any(
        isinstance(unit.spec, GatewaySpec) and unit.ready for node in units.values() for unit in node.values()
    )
    report = _report(draw(st.sampled_from(earlier)).routing) if gateway_alive else None
    routes = Routes(stack="world", generation=1, instances=tuple(instances.values()))
    unreachable = draw(st.sampled_from([None, None, None, "beta"]))
    nodes = {
        name: Unreachable("timed out")
        if name == unreachable
        else Reachable(
            units[name],
            {port: _holder(port, units[name]) for port in used[name]},
            memory_gib=MEMORY_GIB,
            memory_available_gib=draw(st.sampled_from([None, 64.0])),
        )
        for name in units
    }
    return desired, Observed(nodes, draw(st.sampled_from([routes, None])), report)


def _place(wanted: DesiredUnit, state: str, units, used, instances) -> None:  # type: ignore[no-untyped-def]
    node = wanted.node
    alive = state != "ended"
    port = wanted.spec.port
    if port is None:
        port = next(p for p in range(18100, 18150) if p not in used[node])
    if alive and port in used[node]:
        return  # somebody else has it: this unit could not have been started then
    if alive:
        used[node].add(port)
    unit = ObservedUnit(
        wanted.id,
        node,
        alive=alive,
        ready=alive and state != "starting",
        phase="running" if alive else "exited",
        spec=wanted.spec,
        port=port,
        owner=OWNER,
    )
    units[node][wanted.id] = unit
    if state in ("published", "draining") and not isinstance(wanted.spec, GatewaySpec):
        instances[wanted.id] = Instance(
            unit=wanted.id,
            node=node,
            service=wanted.spec.service,
            model=wanted.spec.model.name,
            url=f"http://{address(node)}:{port}",
            state="draining" if state == "draining" else "ready",
        )


def _holder(port: int, units: dict[UnitId, ObservedUnit]) -> PortHolder:
    owner = next((unit for unit in units.values() if unit.alive and unit.port == port), None)
    return PortHolder(4242, "python", (StackName("world"), owner.id) if owner else None)


def _report(routing: object) -> ConfigReport:
    return ConfigReport(
        stack="world",
        generation=1,
        revision=None,
        routing_digest="",
        routing=routing,  # type: ignore[arg-type]
        is_current=True,
        loaded_at=0.0,
        reloads=1,
        failed_reloads=0,
        pid=1,
        endpoints=(),
    )


def losing(observed: Observed, unit: UnitId) -> Observed:
    """Return the world after one unit was killed from outside."""
    nodes = dict(observed.nodes)
    for name, node in observed.nodes.items():
        if isinstance(node, Reachable) and unit in node.units:
            dead = replace(node.units[unit], alive=False, ready=False, phase="exited", exit="killed by SIGKILL")
            nodes[name] = replace(node, units={**node.units, unit: dead})
    after = replace(observed, nodes=nodes)
    gateways = [u for u in after.units() if u.alive and u.ready and isinstance(u.spec, GatewaySpec)]
    return after if gateways else replace(after, gateway=None)

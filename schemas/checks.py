"""Pure: what must hold between the parts of a stack: names that exist, ports that differ, models that fit.

The checks read the composed tree, not the validated types, so that they report even where another key is misspelt.
Values of a wrong type are skipped here; the types report them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from schemas.addresses import is_loopback
from schemas.drafting import added_memory, drafting_problems
from schemas.kinds import kind_problems
from schemas.problems import nearest
from schemas.unit import GATEWAY_SERVICE, WATCHER_SERVICE

LONGEST_CHAIN = 4
"""Roles that fall back to each other in a row: each may have attempts of its own, and one request walks through all."""

Path = tuple[str, ...]
Tree = Mapping[str, Any]


class Finding(NamedTuple):
    """A key, what is wrong with it, and the nearest valid name."""

    path: Path
    message: str
    suggestion: str | None = None


def check_tree(tree: Tree, name: str) -> list[Finding]:
    """Return everything that the parts of one composed stack contradict each other in; `name` is the file's."""
    checks = (
        _check_services,
        _check_helpers,
        _check_roles,
        _check_aliases,
        _check_gateway,
        _check_nodes,
        _check_heal,
        _check_models,
    )
    findings = [finding for check in checks for finding in check(tree)]
    if isinstance(tree.get("stack"), str) and tree["stack"] != name:
        findings.append(Finding(("stack",), f"expected the file's own name, {name!r}, found {tree['stack']!r}"))
    findings += [Finding(path, message) for path, message in kind_problems(tree)]
    return findings + list(_check_ports(tree)) + list(_check_memory(tree))


def _section(tree: Tree, name: str) -> dict[str, Tree]:
    value = tree.get(name)
    if not isinstance(value, Mapping):
        return {}
    return {str(key): child for key, child in value.items() if isinstance(child, Mapping)}


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _unknown(path: Path, kind: str, name: object, valid: Mapping[str, object] | set[str]) -> Iterator[Finding]:
    if isinstance(name, str) and name not in valid:
        known = ", ".join(sorted(valid)) or "none"
        yield Finding(path, f"no {kind} is called {name!r}; there are: {known}", nearest(name, valid))


def _check_services(tree: Tree) -> Iterator[Finding]:
    for name, service in _section(tree, "services").items():
        here = ("services", name)
        if name in (GATEWAY_SERVICE, WATCHER_SERVICE):
            yield Finding(here, f"the name is taken by the {name}'s own unit; choose another")
        yield from _unknown((*here, "model"), "model", service.get("model"), _section(tree, "models"))
        nodes = _names(service.get("nodes"))
        for index, node in enumerate(nodes):
            yield from _unknown((*here, "nodes", str(index)), "node", node, _section(tree, "nodes"))
            if _section(tree, "nodes").get(node, {}).get("reach") == "none":
                yield Finding(
                    (*here, "nodes", str(index)), f"node {node!r} has reach: none; nothing can be started there"
                )
        if isinstance(service.get("sharding"), Mapping):
            yield from _check_sharding((*here, "sharding"), service["sharding"], nodes)
        elif len(set(nodes)) < len(nodes):
            yield Finding((*here, "nodes"), "a node stands twice; only the ranks of a sharded group may share one")
        if len(nodes) > 1 and service.get("sharding") is None and service.get("replicas", 1) == 1:
            yield Finding(
                (*here, "nodes"),
                "several nodes are one sharded group, then say how with `sharding:`, "
                f"or they take copies in turn, then say how many with `replicas: {len(nodes)}`",
            )
        yield from _check_engine(here, service)
        yield from _check_start(here, service)
        models = _section(tree, "models")
        yield from _unknown((*here, "draft"), "model", service.get("draft"), models)
        yield from (Finding(path, message) for path, message in drafting_problems(here, service, models))


def _check_engine(here: Path, service: Tree) -> Iterator[Finding]:
    engine, args = service.get("engine", "mlx"), service.get("args")
    if engine != "mlx" and service.get("sharding") is not None:
        yield Finding((*here, "sharding"), f"only engine mlx runs sharded groups, found engine {engine}")
    if engine == "mlx" and isinstance(args, Mapping) and args:
        yield Finding((*here, "args"), "engine mlx takes none; they are for engines other than it")
    if engine == "command" and not (isinstance(args, Mapping) and isinstance(args.get("command"), str)):
        yield Finding(
            (*here, "args", "command"), "is missing: the command line that serves the model, with {port} in it"
        )
    if service.get("port") is not None:
        places = _first_nodes(service)
        for node in sorted(set(places)):
            if places.count(node) > 1:
                yield Finding(
                    (*here, "port"), f"{places.count(node)} copies on node {node!r} cannot share a port; leave it out"
                )


def _check_start(here: Path, service: Tree) -> Iterator[Finding]:
    if service.get("start") != "on-demand":
        if service.get("idle_stop_s") is not None:
            yield Finding((*here, "idle_stop_s"), "only a service with `start: on-demand` stops when it is idle")
        return
    engine = service.get("engine", "mlx")
    if engine != "mlx":
        yield Finding((*here, "start"), f"only engine mlx loads on demand, found engine {engine}")
    if service.get("sharding") is not None:
        yield Finding(
            (*here, "start"),
            "a sharded group holds its model all the time: its ranks form, load and are proven together; "
            "leave `start` out, or let one node hold the model",
        )


def _copies(service: Tree) -> list[list[str]]:
    """Return the nodes of every copy of a service: of each rank, where it is a group."""
    nodes, replicas = _names(service.get("nodes")), service.get("replicas", 1)
    if not nodes or not isinstance(replicas, int) or not 1 <= replicas <= 64:
        return []
    if service.get("sharding") is not None:
        return [nodes] * replicas
    return [[nodes[replica % len(nodes)]] for replica in range(replicas)]


def _first_nodes(service: Tree) -> list[str]:
    """Return the nodes on which the copies of a service listen: of a group, that of rank 0."""
    return [nodes[0] for nodes in _copies(service)]


def _check_sharding(here: Path, sharding: Tree, nodes: list[str]) -> Iterator[Finding]:
    split = sharding.get("split")
    if len(nodes) < 2:
        yield Finding(here, "a group has a node for each rank: list at least two in `nodes`")
    if sharding.get("backend") == "jaccl" and len(set(nodes)) < len(nodes):
        yield Finding((*here, "backend"), "the ranks of a jaccl group share no machine, and a node stands twice")
    if isinstance(split, list) and sharding.get("strategy") == "tensor":
        yield Finding((*here, "split"), "only a pipeline is split by layers: remove it, or set `strategy: pipeline`")
    elif isinstance(split, list) and len(split) != len(nodes):
        yield Finding((*here, "split"), f"expected a share for each of the {len(nodes)} ranks, found {len(split)}")
    if sharding.get("backend") == "nccl" and sharding.get("strategy") == "pipeline":
        yield Finding((*here, "backend"), "nccl carries no pipeline: use ring or jaccl, or `strategy: tensor`")


def _check_helpers(tree: Tree) -> Iterator[Finding]:
    for name, helper in _section(tree, "helpers").items():
        yield from _unknown(("helpers", name, "node"), "node", helper.get("node"), _section(tree, "nodes"))
        if helper.get("api", "openai") == "ollama":
            continue
        for model, wanted in _section(helper, "models").items():
            if wanted.get("ensure") is not None:
                yield Finding(
                    ("helpers", name, "models", model, "ensure"),
                    "only an Ollama can be asked to pull a model (`api: ollama`); install it there by hand",
                )


def _check_roles(tree: Tree) -> Iterator[Finding]:
    services, helpers, roles = (_section(tree, section) for section in ("services", "helpers", "roles"))
    for name, role in roles.items():
        here = ("roles", name)
        yield from _unknown((*here, "policy"), "policy", role.get("policy"), _section(tree, "policies"))
        for endpoint_name, endpoint in _section(role, "endpoints").items():
            place = (*here, "endpoints", endpoint_name)
            yield from _unknown((*place, "service"), "service", endpoint.get("service"), services)
            yield from _unknown((*place, "helper"), "helper", endpoint.get("helper"), helpers)
            offered = helpers.get(str(endpoint.get("helper")), {}).get("models")
            if isinstance(offered, Mapping):
                kind = f"model of helper {endpoint['helper']!r}"
                yield from _unknown((*place, "model"), kind, endpoint.get("model"), offered)
        fallback = role.get("fallback")
        if isinstance(fallback, Mapping):
            yield from _unknown((*here, "fallback", "local"), "service", fallback.get("local"), services)
            yield from _unknown((*here, "fallback", "role"), "role", fallback.get("role"), roles)
            if fallback.get("role") == name:
                yield Finding((*here, "fallback", "role"), "a role cannot fall back to itself")
        yield from _unknown((*here, "context_fallback"), "role", role.get("context_fallback"), roles)
        if role.get("context_fallback") == name:
            yield Finding((*here, "context_fallback"), "a role cannot fall back to itself")
    yield from _check_fallback_chains(roles, _fallback_role, ("fallback", "role"))
    yield from _check_fallback_chains(roles, _context_role, ("context_fallback",))


def _check_fallback_chains(
    roles: Mapping[str, Tree], next_of: Callable[[Mapping[str, Tree], str], str], key: Path
) -> Iterator[Finding]:
    """Follow the fallbacks from role to role; a circle is reported once, where it comes first.

    `next_of` returns what a role falls back to in one way; `key` is where that stands. A circle over both ways is none:
    a request that is too long for a role never comes back to it for that reason.
    """
    reported: set[str] = set()
    for name in roles:
        chain = [name]
        following = next_of(roles, name)
        while following in roles and following not in chain:
            chain.append(following)
            following = next_of(roles, following)
        if following == name and len(chain) > 1 and name not in reported:
            reported.update(chain)
            circle = " -> ".join((*chain, name))
            yield Finding(("roles", name, *key), f"the roles fall back in a circle: {circle}")
        elif following not in chain and len(chain) > LONGEST_CHAIN + 1:
            message = f"expected at most {LONGEST_CHAIN} fallbacks in a row, found {' -> '.join(chain)}"
            yield Finding(("roles", name, *key), message)


def _fallback_role(roles: Mapping[str, Tree], name: str) -> str:
    """Return the role that another one falls back to; empty where it does not."""
    fallback = roles[name].get("fallback")
    role = fallback.get("role") if isinstance(fallback, Mapping) else None
    return role if isinstance(role, str) else ""


def _context_role(roles: Mapping[str, Tree], name: str) -> str:
    """Return the role that reads longer prompts than another one; empty where none is said to."""
    role = roles[name].get("context_fallback")
    return role if isinstance(role, str) else ""


def _check_aliases(tree: Tree) -> Iterator[Finding]:
    aliases = tree.get("aliases")
    if not isinstance(aliases, Mapping):
        return
    roles, services, models = (_section(tree, section) for section in ("roles", "services", "models"))
    offered = {
        str(name)
        for helper in _section(tree, "helpers").values()
        if isinstance(helper.get("models"), Mapping)
        for name in helper["models"]
    }
    valid = {*roles, *services, *models, *offered}
    for alias, targets in aliases.items():
        here = ("aliases", str(alias))
        if alias in roles or alias in services:
            yield Finding(here, "a role or service has this name already; an alias needs one of its own")
        if isinstance(targets, list) and not targets:
            yield Finding(here, "the list is empty; name at least one role, service or model")
        for index, target in enumerate(_names(targets)):
            yield from _unknown((*here, str(index)), "role, service or model", target, valid)


def _check_gateway(tree: Tree) -> Iterator[Finding]:
    gateway = tree.get("gateway")
    if not isinstance(gateway, Mapping):
        return
    node, nodes = gateway.get("node"), _section(tree, "nodes")
    yield from _unknown(("gateway", "node"), "node", node, nodes)
    if isinstance(node, str) and nodes.get(node, {}).get("reach") == "none":
        yield Finding(("gateway", "node"), f"node {node!r} has reach: none; nothing can be started there")
    bind = gateway.get("bind", "127.0.0.1")
    if not isinstance(bind, str) or is_loopback(bind):
        return
    if not isinstance(gateway.get("auth"), Mapping) and not (
        gateway.get("auth") == "none" and gateway.get("exposed") == "accepted"
    ):
        yield Finding(
            ("gateway", "bind"),
            f"{bind} can be reached from other machines and there are no keys: bind 127.0.0.1, "
            "set `auth: {keys_file: ...}`, or accept it with `auth: none` and `exposed: accepted`",
        )


def _check_nodes(tree: Tree) -> Iterator[Finding]:
    local = [name for name, node in _section(tree, "nodes").items() if node.get("reach") == "local"]
    for name in local[1:]:
        message = f"node {local[0]!r} is this machine already; a sharded group may name it several times"
        yield Finding(("nodes", name, "reach"), message)
    for name, node in _section(tree, "nodes").items():
        if node.get("reach") == "ssh" and node.get("host") is None:
            yield Finding(("nodes", name, "host"), "is missing: the name or address that ssh connects to")
        ports = node.get("ports")
        parts = ports.split("-") if isinstance(ports, str) else []
        if len(parts) == 2 and all(part.isdigit() for part in parts):
            first, last = int(parts[0]), int(parts[1])
            if not 1024 <= first <= last <= 65_535:
                yield Finding(("nodes", name, "ports"), f"expected first <= last within 1024-65535, found {ports}")


def _check_heal(tree: Tree) -> Iterator[Finding]:
    nodes = _section(tree, "nodes").values()
    if tree.get("heal") is True and not any(node.get("reach") == "local" for node in nodes):
        yield Finding(("heal",), "needs a node with `reach: local`: the watcher runs on the machine that applies")


def _check_models(tree: Tree) -> Iterator[Finding]:
    for name, model in _section(tree, "models").items():
        source = model.get("source")
        if isinstance(source, str) and source.startswith("package:") and model.get("revision") is None:
            yield Finding(("models", name, "revision"), "is missing: the version of the package, in quotes")
        if isinstance(source, str) and (fault := _source_fault(source)):
            yield Finding(("models", name, "source"), f"{fault}, found {source!r}")


def _source_fault(source: str) -> str | None:
    """Say what is wrong with a source beyond its pattern: it becomes a folder's name and a command's argument."""
    kind, _, rest = source.partition(":")
    if kind == "path" and (".." in rest.split("/") or not rest.isprintable() or rest != rest.strip()):
        return "expected path:/directory without '..' and without a space at the end"
    if kind != "path" and (".." in rest or "--" in rest):
        return "expected no '..' and no '--' in a source"
    return None


def _check_ports(tree: Tree) -> Iterator[Finding]:
    taken: dict[tuple[str, int], str] = {}
    gateway = tree.get("gateway")
    if isinstance(gateway, Mapping) and isinstance(gateway.get("node"), str):
        port = gateway.get("port", 8000)
        if isinstance(port, int):
            taken[(gateway["node"], port)] = "gateway.port"
    for name, service in _section(tree, "services").items():
        port = service.get("port")
        if not isinstance(port, int) or isinstance(port, bool):
            continue
        for node in dict.fromkeys(_first_nodes(service)):
            key = f"services.{name}.port"
            other = taken.setdefault((node, port), key)
            if other != key:
                yield Finding(("services", name, "port"), f"port {port} on node {node!r} is already that of {other}")


def _share(service: Tree, nodes: list[str], rank: int) -> float:
    """Return which part of its model a rank holds."""
    sharding = service.get("sharding")
    split = sharding.get("split") if isinstance(sharding, Mapping) else None
    if isinstance(split, list) and len(split) == len(nodes) and all(isinstance(s, int) and s > 0 for s in split):
        return float(split[rank] / sum(split))
    return 1.0 / len(nodes)


def _needs(tree: Tree, start: str) -> Iterator[tuple[str, str, float]]:
    """Yield service, node and declared memory of every unit of the services that start in one way."""
    models = _section(tree, "models")
    for name, service in _section(tree, "services").items():
        need = models.get(str(service.get("model")), {}).get("memory_gib")
        if not isinstance(need, int | float) or service.get("start", "always") != start:
            continue
        for nodes in _copies(service):
            for rank, node in enumerate(nodes):
                yield name, node, need * _share(service, nodes, rank) + added_memory(service, models)


def _check_memory(tree: Tree) -> Iterator[Finding]:
    needed: dict[str, float] = {}
    for _, node, need in _needs(tree, "always"):
        needed[node] = needed.get(node, 0.0) + need
    left: dict[str, float] = {}
    for name, offer in _section(tree, "nodes").items():
        memory, reserve = offer.get("memory_gib"), offer.get("reserve_gib", 0.0)
        if not isinstance(memory, int | float) or not isinstance(reserve, int | float):
            continue
        if needed.get(name, 0.0) > memory - reserve:
            yield Finding(
                ("nodes", name, "memory_gib"),
                f"the models on it need {needed[name]:g} GiB, it offers {memory - reserve:g} "
                f"({memory:g} less {reserve:g} kept free)",
            )
        else:
            left[name] = memory - reserve - needed.get(name, 0.0)
    for service, node, need in dict.fromkeys(_needs(tree, "on-demand")):
        if node in left and need > left[node]:
            yield Finding(
                ("services", service, "model"),
                f"it needs {need:g} GiB when it is asked for, node {node!r} has {left[node]:g} beside what always runs",
            )

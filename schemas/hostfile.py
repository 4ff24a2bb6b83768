"""Pure: the hostfiles of `mlx.launch` in today's words: a node file for each host."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.base import NAME_PATTERN

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_NETWORK = "lan"
"""What the addresses of a hostfile are called: it does not say which network they are of."""


class HostfileError(ValueError):
    """A file is no hostfile of `mlx.launch`; says in one sentence why."""


@dataclass(frozen=True, slots=True)
class ImportedHosts:
    """The machines of a hostfile."""

    nodes: Mapping[str, dict[str, Any]]
    """The content of a node file by node name, in rank order."""
    backend: str | None
    notes: tuple[str, ...]
    """What was left out or has to be looked at, in words."""


def import_hostfile(text: str) -> ImportedHosts:
    """Return the nodes that a hostfile names.

    Both shapes of `mlx.launch --hostfile` (mlx 0.32, `Hostfile.from_file`): a list of `{ssh, ips, rdma}`, or
    `{backend, envs, hosts}` around such a list. `rdma` has one device for each rank, null for the host itself. Raises
    `HostfileError`.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HostfileError(f"it is not JSON: {error}") from error
    around = document if isinstance(document, dict) else {}
    hosts = around.get("hosts") if around else document
    if not isinstance(hosts, list) or not hosts:
        raise HostfileError("expected a list of hosts, or an object with `hosts`, as `mlx.launch --hostfile` reads it")
    notes: list[str] = []
    for index, host in enumerate(hosts):
        if not isinstance(host, dict) or not isinstance(host.get("ssh"), str) or not host["ssh"].strip():
            raise HostfileError(f"host {index} has no `ssh`, the name that ssh connects to")
    names = _names([host["ssh"] for host in hosts])
    nodes = {name: _node(name, host, names, notes) for name, host in zip(names, hosts, strict=True)}
    if around.get("envs"):
        notes.append("envs were left out: the environment of a rank is orchestrate's to set")
    backend = around.get("backend")
    return ImportedHosts(nodes, backend if isinstance(backend, str) and backend else None, tuple(notes))


def _names(hosts: list[str]) -> list[str]:
    """Return a node name for each host: its first label, or its address; numbered where two are alike."""
    names: list[str] = []
    for host in hosts:
        bare = host.rpartition("@")[2].lower()
        label = bare if re.fullmatch(r"[0-9.]+|.*:.*", bare) else bare.split(".")[0]
        name = re.sub(r"[^a-z0-9._-]", "-", label).strip("-._") or "host"
        taken = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(name if taken == 0 else f"{name}-{taken + 1}")
    wrong = [name for name in names if not re.match(NAME_PATTERN, name)]
    if wrong:
        raise HostfileError(f"{wrong[0]!r} cannot be a node's name")
    return names


def _node(name: str, host: Mapping[str, Any], names: list[str], notes: list[str]) -> dict[str, Any]:
    user, _, address = host["ssh"].strip().rpartition("@")
    if address in _LOOPBACK:
        return {"reach": "local"}
    node: dict[str, Any] = {"reach": "ssh", "host": address}
    if user:
        node["user"] = user
    addresses = [ip for ip in host.get("ips") or [] if isinstance(ip, str)]
    if addresses:
        node["addresses"] = {_NETWORK if n == 0 else f"{_NETWORK}{n + 1}": ip for n, ip in enumerate(addresses)}
    devices = host.get("rdma") or []
    if isinstance(devices, list) and devices:
        node["rdma"] = _rdma(name, devices, names, notes)
    return node


def _rdma(name: str, devices: list[Any], names: list[str], notes: list[str]) -> dict[str, str]:
    if len(devices) != len(names):
        raise HostfileError(f"host {name} has {len(devices)} rdma entries for {len(names)} hosts")
    found = {}
    for peer, device in zip(names, devices, strict=True):
        several = [part for part in device if isinstance(part, str)] if isinstance(device, list) else [device]
        if peer != name and several and isinstance(several[0], str):
            found[peer] = several[0]
            if len(several) > 1:
                notes.append(f"{name} has several devices to {peer}; {several[0]} was taken")
    return found

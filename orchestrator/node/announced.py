"""Pure: what machines announce on the local network, as node files for a person to look at.

Everything an announcement holds was written by whoever is on the network: nothing of it reaches a file or a terminal
unchecked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Literal

from schemas.base import NAME_PATTERN, NodeName
from schemas.node import Node

SSH, SFTP, WORKSTATION = "_ssh._tcp.local.", "_sftp-ssh._tcp.local.", "_workstation._tcp.local."
SERVICES = (SSH, SFTP, WORKSTATION)
"""What is listened for: macOS announces the first two while Remote Login is on, Avahi the last where it is told to."""
SSH_PORT = 22
_NETWORK = "lan"
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_NODE_NAME = re.compile(NAME_PATTERN)

KnownBy = Literal["name", "host", "address"]


@dataclass(frozen=True, slots=True)
class Announcement:
    """One announced service, as it was received."""

    service: str
    """Its type, one of `SERVICES`."""
    instance: str
    """Its name for people, such as `Anna's Mac mini`."""
    host: str
    """The machine's mDNS name, such as `annas-mac-mini.local.`"""
    addresses: tuple[str, ...]
    port: int
    text: Mapping[str, str] = field(default_factory=dict)
    """The keys of its TXT record and of the machine's `_device-info._tcp`."""


@dataclass(frozen=True, slots=True)
class Self:
    """The machine that listens, by which it is told from the others."""

    host: str
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that announced itself."""

    name: NodeName
    """The name of its node: of the one that it is already, or else a valid one that no other machine has."""
    host: str
    """Its mDNS name without the last dot; empty where ssh could not connect to a name like that."""
    title: str
    """What it calls itself, with nothing in it that a terminal or YAML would understand."""
    addresses: tuple[str, ...]
    """Best first: IPv4, IPv6, then what is valid on one link only."""
    os: Literal["macos", "linux"] | None
    ssh_port: int | None
    """Where its sshd listens; None where it does not announce one."""
    known: KnownBy | None = None
    """By what it was recognised as a node that has a file."""
    is_here: bool = False
    """Whether it is the machine that listens."""

    @property
    def is_new(self) -> bool:
        """Tell whether a node file of it can be drafted."""
        return self.known is None and not self.is_here and bool(self.host or self._reachable())

    def content(self) -> dict[str, Any]:
        """Return what its node file would hold below its name."""
        reachable = self._reachable()
        node: dict[str, Any] = {"reach": "ssh", "host": self.host or reachable[0]}
        if self.os:
            node["os"] = self.os
        # a second family is another way to the same place, not another network
        same = [text for text in reachable if (":" in text) == (":" in reachable[0])]
        if same:
            node["addresses"] = {_NETWORK if n == 0 else f"{_NETWORK}{n + 1}": text for n, text in enumerate(same)}
        return node

    def checks(self) -> tuple[str, ...]:
        """Return what a person has to look at before a stack names it, one sentence each."""
        found = ["user: missing; name the account where it is not the one that your ssh takes anyway"]
        if self.ssh_port is None:
            found.append("it does not announce ssh; see that its sshd runs")
        elif self.ssh_port != SSH_PORT:
            found.append(f"its sshd listens on port {self.ssh_port}; say so in your ~/.ssh/config")
        if self.host.endswith(".local"):
            found.append("host: its mDNS name; put a DNS name or an address where machines of yours do not resolve it")
        if len(self.content().get("addresses", ())) > 1:
            found.append("addresses: it has several; keep those that the other machines reach, and name the networks")
        found.append("memory_gib: unknown; the node is asked while it is absent. reserve_gib keeps some for its user")
        return tuple(found)

    def _reachable(self) -> list[str]:
        return [text for text in self.addresses if not ip_address(text).is_link_local]


def machines(announcements: Iterable[Announcement], nodes: Mapping[NodeName, Node], here: Self) -> tuple[Machine, ...]:
    """Return the machines behind announcements by name, with those marked that have a node file already."""
    hosts: dict[str, list[Announcement]] = {}
    for each in sorted(announcements, key=lambda each: (each.host, each.service, each.instance)):
        hosts.setdefault(each.host.rstrip(".").lower(), []).append(each)
    found: list[Machine] = []
    taken = set(nodes)
    for host, said in hosts.items():
        machine = _machine(host, said, nodes, here, taken)
        taken.add(machine.name)
        found.append(machine)
    return tuple(sorted(found, key=lambda machine: machine.name))


def _machine(
    host: str, said: Sequence[Announcement], nodes: Mapping[NodeName, Node], here: Self, taken: set[NodeName]
) -> Machine:
    addresses = _addresses(text for each in said for text in each.addresses)
    ports = [each.port for each in said if each.service in (SSH, SFTP) and each.port]
    text = {key.lower(): value for each in said for key, value in each.text.items()}
    label = _label(host)
    is_here = _first(host) == _first(here.host) or bool(here.addresses & set(addresses))
    recognised = _recognise(host, label, addresses, nodes)
    name, by = recognised or (None, None)
    if name is None and is_here:
        name = next((name for name, node in nodes.items() if node.reach == "local"), None)
    return Machine(
        name=name or _free(label, taken),
        host=host if _HOST.fullmatch(host) else "",
        title=_printable(next((each.instance for each in said if each.service != WORKSTATION), host)),
        addresses=addresses,
        os=_system(text),
        ssh_port=ports[0] if ports else None,
        known=by,
        is_here=is_here,
    )


def _recognise(
    host: str, label: str, addresses: Sequence[str], nodes: Mapping[NodeName, Node]
) -> tuple[NodeName, KnownBy] | None:
    """Return the node that a machine is already. `m4max.lan` and `m4max.local` are taken for one machine."""
    for name, node in sorted(nodes.items()):
        if node.host and _same_host(node.host, host):
            return name, "host"
    for name, node in sorted(nodes.items()):
        if set(addresses) & {node.host, *node.addresses.values()}:
            return name, "address"
    return (NodeName(label), "name") if label in nodes else None


def _same_host(one: str, other: str) -> bool:
    return _address(one) is None and _first(one) == _first(other)


def _first(host: str) -> str:
    return host.partition(".")[0].lower()


def _addresses(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses that another machine could connect to, best first."""
    found = dict.fromkeys(address for text in texts if (address := _address(text)) is not None)
    # `::ffff:192.0.2.1` is that IPv4 address again, which is announced by itself
    other = [each for each in found if not (each.is_loopback or each.is_multicast or each.is_unspecified)]
    usable = [each for each in other if not str(each).startswith(":")]
    return tuple(str(each) for each in sorted(usable, key=lambda each: (each.is_link_local, each.version)))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _system(text: Mapping[str, str]) -> Literal["macos", "linux"] | None:
    """Return the system that TXT records name.

    `osxvers` is what macOS itself puts into `_device-info._tcp`; a `model` of a Mac is no sign, as Samba says one too.
    """
    if "osxvers" in text:
        return "macos"
    named = text.get("os", "").lower()
    if re.match(r"mac ?os|darwin|os ?x", named):
        return "macos"
    return "linux" if "linux" in named else None


def _label(host: str) -> str:
    """Return a valid node name made of the first label of a host."""
    label = re.sub(r"[^a-z0-9_-]+", "-", _first(host)).strip("-_")[:60].rstrip("-_")
    return label if _NODE_NAME.match(label) else "machine"


def _free(label: str, taken: set[NodeName]) -> NodeName:
    names = (label if n == 1 else f"{label}-{n}" for n in range(1, len(taken) + 2))
    return NodeName(next(name for name in names if name not in taken))


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:80]

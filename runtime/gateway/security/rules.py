"""Pure: what the files say about who may ask, from where, and by which name."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from runtime.gateway.security.keyring import Keyring
from schemas.addresses import is_loopback
from schemas.keys import Keys
from schemas.stack import KeysFile, Stack

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "host.docker.internal", "host.containers.internal"})
"""What a machine is called by itself, and by the containers that run on it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules in force. A request is judged by those of the moment it arrives."""

    keyring: Keyring
    is_keyed: bool
    """Whether clients have to show a key."""
    hosts: frozenset[str]
    """The names by which the gateway may be called, in lower case; addresses are always good."""
    origins: frozenset[str]
    """The web pages that may ask."""


def rules_of(stack: Stack, keys: Keys, own_token: str | None, bind: str, machine: Iterable[str]) -> Rules:
    """Return the rules of a stack; `bind` is where this process listens, `machine` what its machine is called."""
    node = stack.nodes[stack.gateway.node]
    named = [bind, stack.gateway.bind, stack.gateway.node, *stack.gateway.hosts, *machine, *node.addresses.values()]
    if node.host is not None:
        named.append(node.host)
    return Rules(
        keyring=Keyring(keys, own_token),
        is_keyed=is_keyed(stack),
        hosts=LOOPBACK_NAMES | {as_host(name) for name in named},
        origins=frozenset(stack.gateway.origins),
    )


def is_keyed(stack: Stack) -> bool:
    """Tell whether a stack asks its clients for keys."""
    return isinstance(stack.gateway.auth, KeysFile)


def may_bind(stack: Stack, bind: str) -> bool:
    """Tell whether a stack may be served at an address: beyond loopback keys are asked for, or their lack accepted."""
    gateway = stack.gateway
    return is_loopback(bind) or is_keyed(stack) or (gateway.auth == "none" and gateway.exposed == "accepted")


def as_host(name: str) -> str:
    """Return a name or address as it stands in a Host header, without a port."""
    return f"[{name.lower()}]" if ":" in name else name.lower()


def host_name(host: str) -> str:
    """Return a well-formed Host header without its port, in lower case."""
    host = host.lower()
    name, colon, port = host.rpartition(":")
    return name if colon and not port.endswith("]") else host


def is_this_machine(peer: object) -> bool:
    """Tell whether a socket's peer, as `getpeername` gives it, is a loopback address."""
    if not isinstance(peer, tuple) or not peer or not isinstance(peer[0], str):
        return False
    return is_loopback(peer[0]) and peer[0] != "localhost"


def is_address(name: str) -> bool:
    """Tell whether the name in a Host header is an IP address: no name server can point that anywhere else."""
    try:
        if name.startswith("["):
            ipaddress.IPv6Address(name[1:-1])
        else:
            ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True

"""I/O: gathers what tells the usual mistakes of a helper apart: other ports of its host, and its loopback from within.

Only hosts that the stack's own helpers name are looked at, only at the ports where inference servers usually listen,
and only inside private networks: nobody else's machine is scanned.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import httpx

from orchestrator.helpers.diagnose import PORTS, Evidence, Finding, diagnose
from orchestrator.helpers.observe import look
from orchestrator.helpers.silence import place
from orchestrator.observed import HelperSeen, HelperSilent
from orchestrator.transport.base import NodeTransport, TransportError
from schemas.base import HelperName, NodeName
from schemas.stack import Helper

CONNECT_S = 1.5
"""A port of a LAN answers or refuses within a millisecond."""
ON_NODE_S = 20.0
_ASK_LOOPBACK = (
    "import socket,sys\n"
    "for host in ('127.0.0.1', '::1'):\n"
    "    try:\n"
    "        socket.create_connection((host, int(sys.argv[1])), 2).close()\n"
    "    except OSError:\n"
    "        continue\n"
    "    print('open')\n"
    "    break\n"
    "else:\n"
    "    print('closed')\n"
)


@dataclass(frozen=True, slots=True)
class Probed:
    """One helper with everything that was found out about it."""

    seen: HelperSeen | HelperSilent
    findings: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Tell whether it serves as declared."""
        return isinstance(self.seen, HelperSeen) and not self.findings


async def probe(
    http: httpx.AsyncClient,
    helpers: Mapping[HelperName, Helper],
    transports: Mapping[NodeName, NodeTransport],
    environ: Mapping[str, str],
    *,
    ports: Collection[int] = tuple(PORTS),
) -> Mapping[HelperName, Probed]:
    """Return what is the matter with each helper.

    `transports` lead to the nodes on which we may run a command, `ports` are those where another server may be.
    """
    async with asyncio.TaskGroup() as group:
        asked = {
            name: group.create_task(_probe(http, name, helper, transports, environ, ports))
            for name, helper in helpers.items()
        }
    return {name: task.result() for name, task in asked.items()}


async def _probe(
    http: httpx.AsyncClient,
    name: HelperName,
    helper: Helper,
    transports: Mapping[NodeName, NodeTransport],
    environ: Mapping[str, str],
    ports: Collection[int],
) -> Probed:
    seen = await look(http, name, helper, environ)
    evidence = Evidence()
    if isinstance(seen, HelperSilent) and seen.kind in ("refused", "no answer", "no route", "stranger", "broken"):
        transport = transports.get(helper.node) if helper.node is not None else None
        evidence = await _gather(http, name, helper, transport, ports)
    return Probed(seen, diagnose(name, helper, seen, evidence, is_macos=sys.platform == "darwin"))


async def _gather(
    http: httpx.AsyncClient,
    name: HelperName,
    helper: Helper,
    transport: NodeTransport | None,
    ports: Collection[int],
) -> Evidence:
    host, port = place(helper.url)
    others = [other for other in ports if other != port] if await _is_private(host) else []
    async with asyncio.TaskGroup() as group:
        doors = {other: group.create_task(_knock(host, other)) for other in others}
        inside = group.create_task(_is_open_inside(transport, port))
    is_open = {other for other, door in doors.items() if door.result() == "open"}
    async with asyncio.TaskGroup() as group:
        # without the key: it is for the helper's own URL only
        looks = {other: group.create_task(look(http, name, _at(helper, host, other), {})) for other in sorted(is_open)}
    found = {other: task.result() for other, task in looks.items()}
    return Evidence(
        elsewhere={other: seen for other, seen in found.items() if isinstance(seen, HelperSeen)},
        is_host_up=any(door.result() in ("open", "refused") for door in doors.values()) if doors else None,
        is_open_on_its_loopback=inside.result(),
    )


def _at(helper: Helper, host: str, port: int) -> Helper:
    shown = f"[{host}]" if ":" in host else host
    return helper.model_copy(update={"url": f"http://{shown}:{port}", "key": None})


async def _knock(host: str, port: int) -> str:
    """Tell whether a port is `open`, `refused` or `silent`."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return "refused"
    except OSError:  # TimeoutError is one
        return "silent"
    writer.close()
    return "open"


async def _is_private(host: str) -> bool:
    """Tell whether every address of a host is in a private network or on this machine."""
    try:
        async with asyncio.timeout(ON_NODE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return bool(addresses) and all(address.is_private or address.is_link_local for address in addresses)


async def _is_open_inside(transport: NodeTransport | None, port: int) -> bool | None:
    """Ask the machine itself whether the port is open on its loopback; None where it cannot be asked."""
    if transport is None:
        return None
    try:
        done = await transport.run(["python3", "-c", _ASK_LOOPBACK, str(port)], timeout_s=ON_NODE_S)
    except TransportError:
        return None
    return {b"open": True, b"closed": False}.get(done.stdout.strip())

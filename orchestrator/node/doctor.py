"""I/O: looks at nodes for everything that units need of them, all at once; a slow one delays nobody."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from orchestrator.directories import Directories
from orchestrator.node.anchors import PLIST_PATH
from orchestrator.node.checks import Check, Facts, checks, unreachable
from orchestrator.node.client import ShimClient, ShimError
from orchestrator.node.provision import is_provisioned
from orchestrator.node.site import Site, SiteError, local_site
from orchestrator.transport.base import NodeTransport, TransportError
from orchestrator.transport.choose import transport_to
from schemas.base import NodeName
from schemas.node import Node

LOOK_S = 30.0
# one line a fact; ibv_devices prints a table with two lines above the names
_LOOK = """[ -d /run/systemd/system ] && echo systemd
[ -e "/var/lib/systemd/linger/$(id -un)" ] && echo linger
if command -v ibv_devices >/dev/null 2>&1; then
    echo ibv
    ibv_devices 2>/dev/null | awk 'NR > 2 && NF { print "device " $1 }'
fi
exit 0
"""


@dataclass(frozen=True, slots=True)
class Examined:
    """A node and the verdicts on it; `is_reached` tells whether it could be asked at all."""

    name: NodeName
    is_reached: bool
    checks: tuple[Check, ...]

    @property
    def is_well(self) -> bool:
        """Tell whether nothing failed."""
        return all(check.verdict != "fail" for check in self.checks)


async def examine_all(nodes: Mapping[NodeName, Node], directories: Directories) -> AsyncIterator[Examined]:
    """Examine nodes side by side and yield each as soon as it is known; those without commands are left out."""
    tasks = [
        asyncio.create_task(_examine(name, node, directories)) for name, node in nodes.items() if node.reach != "none"
    ]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _examine(name: NodeName, node: Node, directories: Directories) -> Examined:
    transport = transport_to(name, node, directories)
    began = time.monotonic()
    try:
        await transport.run(["true"], timeout_s=LOOK_S * 2)
    except TransportError as error:
        return Examined(name, False, (unreachable(error),))
    reach = Check("reach", "ok", f"answers in {time.monotonic() - began:.2f} s")
    try:
        facts = await _look(transport, node, directories)
    except SiteError as error:
        return Examined(name, True, (reach, Check("python", "fail", str(error).removeprefix(f"{name}: "))))
    except TransportError as error:
        return Examined(name, False, (reach, unreachable(error)))
    except ShimError as error:
        return Examined(name, True, (reach, Check("state", "fail", str(error).removeprefix(f"{name}: "))))
    return Examined(name, True, (reach, *checks(name, node, facts)))


async def _look(transport: NodeTransport, node: Node, directories: Directories) -> Facts:
    shim = ShimClient(transport, local_site(directories) if node.reach == "local" else None)
    site = await shim.site()
    asked = time.time()
    report = await shim.doctor()
    answered = time.time()
    seen = await shim.report(None, node.port_range())
    words = await _words(transport)
    half = (answered - asked) / 2
    return Facts(
        site=site,
        report=report,
        is_provisioned=await is_provisioned(transport, site),
        skew_s=report.node.time - (asked + half),
        skew_error_s=half,
        ports=seen.ports,
        rdma=frozenset(word.removeprefix("device ") for word in words if word.startswith("device "))
        if "ibv" in words
        else None,
        has_systemd="systemd" in words,
        lingers="linger" in words,
    )


async def _words(transport: NodeTransport) -> list[str]:
    done = await transport.run(["sh", "-c", _LOOK], timeout_s=LOOK_S)
    return done.stdout.decode("utf-8", "replace").splitlines()


async def install_anchor(transport: NodeTransport, site: Site, plist: bytes | None) -> tuple[bool, str]:
    """Let what is started on a node outlive its logins, as far as that takes no password.

    `plist` is the LaunchDaemon of a Mac. Returns whether it is done, and what was done or the command that does it.
    Raises TransportError.
    """
    if site.os == "macos":
        return await _install_daemon(transport, site, plist or b"")
    words = await _words(transport)
    if "systemd" not in words:
        return True, "no systemd there; units are parented by their own double fork"
    if "linger" in words:
        return True, f"the user manager of {site.user} lingers"
    for argv in (["loginctl", "enable-linger", site.user], ["sudo", "-n", "loginctl", "enable-linger", site.user]):
        if (await transport.run(argv, timeout_s=LOOK_S)).exit_code == 0:
            return True, f"the user manager of {site.user} lingers now"
    return False, f"sudo loginctl enable-linger {site.user}"


async def _install_daemon(transport: NodeTransport, site: Site, plist: bytes) -> tuple[bool, str]:
    source = f"{site.state}/{PLIST_PATH.rpartition('/')[2]}"
    await transport.push(plist, source, mode=0o600)
    script = (
        f"install -o root -g wheel -m 644 {shlex.quote(source)} {PLIST_PATH}"
        f" && {{ launchctl bootout system {PLIST_PATH} 2>/dev/null; launchctl bootstrap system {PLIST_PATH}; }}"
    )
    done = await transport.run(["sudo", "-n", "sh", "-c", script], timeout_s=LOOK_S)
    if done.exit_code == 0:
        return True, f"{PLIST_PATH} is loaded"
    return False, f"sudo sh -c {shlex.quote(script)}"

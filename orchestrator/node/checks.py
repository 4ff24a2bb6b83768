"""Pure: what makes a node fit for units: one verdict for each thing that was looked at, with its mend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.node.anchors import is_anchored
from orchestrator.node.reports import DoctorReport, PortHolder
from orchestrator.node.site import Site
from orchestrator.transport.base import (
    AccessRefusedError,
    HostKeyChangedError,
    HostKeyUnknownError,
    NodeUnreachableError,
    TransportError,
)
from schemas.node import Node

GIB = 1 << 30
LITTLE_DISK_GIB = 10
"""Our packages take about 1 GiB while they are installed, a small model a few."""
NO_DISK_GIB = 1
SKEW_S = 5.0
BAD_SKEW_S = 300.0
"""From here on certificates of package indexes and hubs may be refused as not yet or no longer valid."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `found` says what is, `mend` what to do about it where it is not ok."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of a node that answers.

    `skew_s` is its clock against ours, known to within `skew_error_s`; `ports` has who listens in its range; `rdma` the
    names of its RDMA devices, None where no tool there lists them; `has_systemd` and `lingers` are of Linux.
    """

    site: Site
    report: DoctorReport
    is_provisioned: bool
    skew_s: float
    skew_error_s: float
    ports: Mapping[int, PortHolder] = field(default_factory=dict)
    rdma: frozenset[str] | None = None
    has_systemd: bool = False
    lingers: bool = False


def unreachable(error: TransportError) -> Check:
    """Return the check of a node that cannot be asked; its error says what to do."""
    match error:
        case HostKeyChangedError() | HostKeyUnknownError():
            name = "host key"
        case AccessRefusedError():
            name = "login"
        case NodeUnreachableError():
            name = "reach"
        case _:
            name = "node"
    return Check(name, "fail", str(error).removeprefix(f"{error.node}: "))


def checks(name: str, node: Node, facts: Facts) -> Iterator[Check]:
    """Yield the verdicts on a node that answers, in the order in which they matter."""
    site = facts.site
    version = ".".join(map(str, site.python_version))
    yield Check("python", "ok", f"{version} at {site.python}")
    yield _environment(name, facts)
    yield _locks(facts)
    yield _disk(facts)
    yield _memory(node, facts)
    yield _ports(node, facts)
    yield _clock(facts)
    yield _survival(name, facts)
    yield from _rdma(node, facts)


def _environment(name: str, facts: Facts) -> Check:
    if facts.site.is_local:
        return Check("environment", "ok", "that of this program")
    if facts.is_provisioned:
        return Check("environment", "ok", "provisioned")
    mend = f"the next apply installs it; ahead of that: orchestrate node install {name}"
    return Check("environment", "warn", "not installed yet, or for another version of this program", mend)


def _locks(facts: Facts) -> Check:
    state = facts.site.state
    if facts.report.locks_work:
        return Check("state", "ok", f"{state} can be written and locked")
    mend = "set ORCHESTRATE_STATE for ssh logins to a directory on a local disk; network file systems may not lock"
    return Check("state", "fail", f"{state} does not lock files: units could be started twice", mend)


def _disk(facts: Facts) -> Check:
    free = facts.report.node.disk_free_bytes / GIB
    found = f"{free:.0f} GiB free at {facts.site.state}"
    if free < NO_DISK_GIB:
        return Check("disk", "fail", f"{free:.1f} GiB free at {facts.site.state}", "free some space there")
    if free < LITTLE_DISK_GIB:
        return Check("disk", "warn", found, "enough for logs, hardly for a model; free some space")
    return Check("disk", "ok", found)


def _memory(node: Node, facts: Facts) -> Check:
    total, available = facts.report.node.memory_total_bytes / GIB, facts.report.node.memory_available_bytes / GIB
    found = f"{available:.0f} of {total:.0f} GiB available"
    if not total:
        return Check("memory", "warn", "the node does not say", "write memory_gib into its node file")
    if node.memory_gib is not None and node.memory_gib > total + 0.5:
        mend = f"write memory_gib: {total:.0f} or less"
        return Check("memory", "fail", f"its file says {node.memory_gib:g} GiB, it has {total:.0f}", mend)
    if node.reserve_gib and available < node.reserve_gib:
        return Check(
            "memory", "warn", f"{found}, less than its reserve_gib of {node.reserve_gib:g}", "end what uses it"
        )
    return Check("memory", "ok", found)


def _ports(node: Node, facts: Facts) -> Check:
    count = len(node.port_range())
    strangers = {port: holder for port, holder in sorted(facts.ports.items()) if holder.unit is None}
    if not strangers:
        return Check("ports", "ok", f"{count - len(facts.ports)} of {count} free in {node.ports}")
    port, holder = next(iter(strangers.items()))
    command = " ".join(holder.command.split())[:60].rstrip()  # programs may be given as an argument, many lines long
    who = f"pid {holder.pid} ({command})" if holder.pid else "a process of another user"
    more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
    mend = "units take others; name another range with ports: in its node file, or end that program"
    return Check("ports", "warn", f"port {port} of {node.ports} is taken by {who}{more}", mend)


def _clock(facts: Facts) -> Check:
    skew, error = facts.skew_s, facts.skew_error_s
    if abs(skew) <= SKEW_S + error:
        return Check("clock", "ok", "agrees with ours" if error < 1 else f"agrees with ours within {error:.0f} s")
    words = f"{_duration(abs(skew))} {'ahead of' if skew > 0 else 'behind'} ours"
    mend = {
        "linux": "sudo timedatectl set-ntp true",
        "macos": "sudo sntp -sS time.apple.com, and switch on System Settings, General, Date & Time, Set automatically",
    }[facts.site.os]
    return Check("clock", "fail" if abs(skew) > BAD_SKEW_S else "warn", words, mend)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _survival(name: str, facts: Facts) -> Check:
    """Judge whether what is started outlives the login that started it, and may dial the local network."""
    site = facts.site
    if site.os == "macos":
        if is_anchored(site):
            return Check("supervision", "ok", "by a LaunchDaemon, which may dial the local network")
        mend = f"orchestrate node install {name}"
        words = "by its own double fork; macOS may refuse it connections to the local network (errno 65)"
        return Check("supervision", "warn", words, mend)
    if is_anchored(site):
        return Check("supervision", "ok", "by the user manager, which lingers")
    if facts.has_systemd and not site.is_local:
        mend = f"sudo loginctl enable-linger {site.user}, or: orchestrate node install {name}"
        found = "its user manager lingers but cannot be asked" if facts.lingers else "its user manager does not linger"
        return Check("supervision", "warn", f"by its own double fork: {found}", mend)
    return Check("supervision", "ok", "by its own double fork")


def _rdma(node: Node, facts: Facts) -> Iterator[Check]:
    wanted = set(node.rdma.values())
    if not wanted and not facts.rdma:
        return
    have = facts.rdma or frozenset()
    listed = ", ".join(sorted(have)) or "none"
    missing = sorted(wanted - have)
    if not missing:
        yield Check("rdma", "ok", f"devices: {listed}")
    elif facts.rdma is None:
        mend = {
            "linux": "sudo apt install ibverbs-utils",
            "macos": "needs macOS 26.2 or newer; switch RDMA on in the recovery system: rdma_ctl enable",
        }[facts.site.os]
        yield Check("rdma", "fail", f"no ibv_devices there; its file names {', '.join(missing)}", mend)
    else:
        mend = "correct rdma: in its node file, plug the cable in, or on macOS: rdma_ctl enable in the recovery system"
        yield Check("rdma", "fail", f"no device {', '.join(missing)}; there are: {listed}", mend)

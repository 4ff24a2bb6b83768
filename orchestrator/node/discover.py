"""I/O: listens to what machines announce by mDNS. Needs the extra `discover`, and nothing else of ours does."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.node.announced import SERVICES, WORKSTATION, Announcement, Self

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

RESOLVE_S = 1.0
"""What an announcement heard at the very end still gets for its addresses."""
MOST = 500
"""Announcements that are looked at; a network with more of them is not one that a person reads through."""
_DEVICE = "_device-info._tcp.local."


class DiscoveryError(Exception):
    """Nothing could be listened to; says what to do about it."""


async def listen(seconds: float, interfaces: Sequence[str] = ()) -> tuple[Announcement, ...]:
    """Return what is announced within `seconds`; it takes up to `RESOLVE_S` longer.

    `interfaces` are addresses of this machine; all of its IPv4 ones if none is given. Raises DiscoveryError.
    """
    try:
        from zeroconf import DNSQuestionType, Error, InterfaceChoice
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf
    except ImportError as error:
        command = f"{sys.executable} -m pip install 'orchestrate[discover]'"
        raise DiscoveryError(f"Discovery needs a package that is not installed ({error}). Run: {command}") from error
    try:
        _check_addresses(interfaces)
        multicast = AsyncZeroconf(interfaces=list(interfaces) or InterfaceChoice.All)
    except (OSError, Error, ValueError) as error:  # ValueError: no IPv4 address, or not one of this machine
        where = ", ".join(interfaces) or "any interface"
        message = f"mDNS cannot be listened to on {where} (UDP port 5353): {error}"
        raise DiscoveryError(message) from error
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def changed(service_type: str, name: str, state_change: ServiceStateChange, **_: Zeroconf) -> None:
        if state_change.name != "Removed":
            heard.put_nowait((service_type, name))

    try:
        # Answers to one asker (RFC 6762, 5.4) go to whichever program of a machine has UDP port 5353, often its own
        # mDNS daemon: everything is asked so that all hear the answer.
        browser = AsyncServiceBrowser(
            multicast.zeroconf, list(SERVICES), handlers=[changed], question_type=DNSQuestionType.QM
        )
        try:
            return await _resolved(multicast, heard, seconds)
        finally:
            await browser.async_cancel()
    finally:
        await multicast.async_close()


def _check_addresses(interfaces: Iterable[str]) -> None:
    """Raise OSError or ValueError for what is no address of this machine: zeroconf would leave its socket open then."""
    for each in interfaces:
        if ipaddress.ip_address(each).version == 4:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
                trial.bind((each, 0))


def this_machine() -> Self:
    """Return by what this machine is recognised among those that announce themselves."""
    import ifaddr  # zeroconf brings it

    found = {ip.ip if isinstance(ip.ip, str) else ip.ip[0] for each in ifaddr.get_adapters() for ip in each.ips}
    return Self(socket.gethostname(), frozenset(found))


async def _resolved(
    multicast: AsyncZeroconf, heard: asyncio.Queue[tuple[str, str]], seconds: float
) -> tuple[Announcement, ...]:
    """Ask for the details of all that is heard, side by side, from when it is heard."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    asked: dict[tuple[str, str], asyncio.Task[Announcement | None]] = {}
    async with asyncio.TaskGroup() as group:
        while len(asked) < MOST:
            try:
                async with asyncio.timeout_at(end):
                    one = await heard.get()
            except TimeoutError:
                break
            if one not in asked:
                left_s = max(RESOLVE_S, end - loop.time())
                asked[one] = group.create_task(_ask(multicast, *one, left_s))
    results = (task.result() for task in asked.values())
    return tuple(each for each in results if each is not None)


async def _ask(multicast: AsyncZeroconf, service: str, name: str, left_s: float) -> Announcement | None:
    from zeroconf import BadTypeInNameException, DNSQuestionType, IPVersion
    from zeroconf.asyncio import AsyncServiceInfo

    instance = name.removesuffix(f".{service}")
    names = [(service, name)]
    if service != WORKSTATION:  # its instances are called otherwise than the machine
        names.append((_DEVICE, f"{instance}.{_DEVICE}"))
    try:
        infos = [AsyncServiceInfo(*each) for each in names]
    except BadTypeInNameException:  # a name that nobody can be asked about
        return None
    # the second one has a TXT record only where macOS answers: it is never complete, and waits for the end
    answers = await asyncio.gather(
        *(each.async_request(multicast.zeroconf, left_s * 1000, DNSQuestionType.QM) for each in infos)
    )
    info = infos[0]
    if not answers[0] or not info.server:
        return None
    addresses = tuple(info.parsed_addresses(IPVersion.All))
    return Announcement(service, instance, info.server, addresses, info.port or 0, _text(infos))


def _text(infos: Iterable[AsyncServiceInfo]) -> dict[str, str]:
    pairs = ((key, value) for info in infos for key, value in info.properties.items())
    return {key.decode("utf-8", "replace"): (value or b"").decode("utf-8", "replace") for key, value in pairs}

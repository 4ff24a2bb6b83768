"""Pure: why a helper could not be asked, in words that say what to look at. Numbers: errno of Linux and of macOS."""

from __future__ import annotations

import errno
from urllib.parse import urlsplit

from orchestrator.observed import HelperSilent

_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, 65, 51, 64})
"""65, 51 and 64 are EHOSTUNREACH, ENETUNREACH and EHOSTDOWN on macOS."""


def place(url: str) -> tuple[str, int]:
    """Return the host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def refused(url: str) -> HelperSilent:
    """Say that nothing listens there."""
    host, port = place(url)
    causes = "it is down, listens on another port, or on its own loopback address only"
    return HelperSilent(f"{host} refuses port {port}: {causes}", "refused")


def no_answer(url: str, seconds: float) -> HelperSilent:
    """Say that packets vanish."""
    host, port = place(url)
    message = f"{host} does not answer on port {port} within {seconds:g} s: it is off, or a firewall drops the port"
    return HelperSilent(message, "no answer")


def of_error(url: str, number: int | None, words: str, *, is_macos: bool) -> HelperSilent:
    """Say why connecting failed; `number` is the errno where there is one, `words` what the system said."""
    host, port = place(url)
    if number == errno.ECONNREFUSED:
        return refused(url)
    if number in _NO_ROUTE:
        privacy = " or macOS keeps this process from the local network (privacy settings)" if is_macos else ""
        return HelperSilent(f"no route to {host}: it is off{privacy}", "no route")
    if number == errno.ETIMEDOUT:
        return HelperSilent(f"{host} does not answer on port {port}: it is off, or a firewall drops it", "no answer")
    return HelperSilent(f"{host}:{port} cannot be reached: {words}", "broken")


def unknown_host(url: str) -> HelperSilent:
    """Say that a name leads nowhere."""
    return HelperSilent(f"no address is known for {place(url)[0]}: check the name in the URL", "unknown host")

"""Pure: what an address says about who can reach it."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Tell whether only the machine itself can call what listens at an address. Other names than `localhost` do not."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback

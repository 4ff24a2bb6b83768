"""Pure: a machine, how it is reached, and what it offers. The content of `conf/nodes/*.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from schemas.base import COLD, HOT, Frozen

PortRangeText = Annotated[str, StringConstraints(pattern=r"^[0-9]{2,5}-[0-9]{2,5}$")]
Address = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:-]*$")]


class Node(Frozen):
    """One machine of the cluster."""

    reach: Annotated[Literal["local", "ssh", "none"], COLD]
    """How commands reach it: `local` is this machine, `ssh` another one, `none` only its endpoints are called."""
    host: Annotated[Address | None, COLD] = None
    """The name or address that ssh connects to; units are called there too where `addresses` names none."""
    user: Annotated[str | None, StringConstraints(pattern=r"^[a-z_][a-z0-9_.-]*$"), HOT] = None
    """The account that ssh logs in to."""
    os: Annotated[Literal["macos", "linux"] | None, HOT] = None
    """Its operating system, where it cannot be asked."""
    memory_gib: Annotated[float | None, Field(gt=0), HOT] = None
    """Memory for models and everything else, in GiB; asked from the node when absent."""
    reserve_gib: Annotated[float, Field(ge=0), HOT] = 0.0
    """Memory that is kept free for the system and its user, in GiB."""
    addresses: Annotated[Mapping[str, Address], COLD] = Field(default_factory=dict)
    """Its addresses by network name, such as `lan` and `tb`; units that other machines call listen there."""
    rdma: Annotated[Mapping[str, str], HOT] = Field(default_factory=dict)
    """RDMA device by peer node, for JACCL groups."""
    ports: Annotated[PortRangeText, HOT] = "18100-18199"
    """The ports that units without a port of their own may take, first and last."""

    def port_range(self) -> range:
        """Return the ports that units may take, in the order in which they are tried."""
        first, last = (int(part) for part in self.ports.split("-"))
        return range(first, last + 1)

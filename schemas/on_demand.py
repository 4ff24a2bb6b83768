"""Pure: what is said of models that are loaded when they are asked for: by a worker, and to it."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.base import Frozen, Reported


class Loading(Reported):
    """How far a load is: `loading` of a 503, beside `error`."""

    phase: str
    """One of `schemas.messages.Phase`; `cold` where nothing loads now."""
    progress: float | None = None
    """Share of the weights in memory, 0 to 1."""
    eta_s: float | None = None
    """Seconds until it is ready, by the last load of this model or by its size; none where nothing loads now."""


class OnDemandReport(Reported):
    """What `/ready` and `/status` of a worker that loads on demand add."""

    since_s: float
    """How long it has been in its phase."""
    idle_s: float | None = None
    """Seconds since its model was last used; none while it is in use, and before its first use."""
    eta_s: float | None = None
    """Seconds until the load under way ends."""
    failure: str | None = None
    """Why the last load failed, or found no room; none where it did not."""
    loads: int = 0
    """Loads that ended well since the start."""


class Allotment(Frozen):
    """How much of a node's memory its on-demand models share. Written by the orchestrator, read before every load."""

    memory_gib: float | None = None
    """The node's memory as the files declare it; none takes what the machine has."""
    set_aside_gib: float
    """What is not theirs: the node's reserve and the services of one stack that always run."""
    reserve_gib: float = 0.0
    """The node's reserve in it, which counts once however many stacks share the node."""
    needs_gib: Mapping[str, float] = {}
    """What the files declare for the model of an on-demand service, by its name; others go by their weights."""

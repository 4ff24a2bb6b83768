"""Pure: what nodes were found to have installed, remembered for looks that change nothing. The clock is passed in.

Asking a node for its models and its environment starts several programs there. What is there seldom goes, and matters
only to what is started: so a watcher rests on what it has seen, and asks again before it changes anything.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from orchestrator.observed import ModelForm
from schemas.base import ModelName, NodeName

REMEMBERED_S = 600.0
"""An environment that nobody asks for is kept for an hour (see `node.provision`): what is rested on is asked sooner."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What one node has of what was asked for."""

    models: frozenset[tuple[ModelName, ModelForm]]
    is_provisioned: bool


class InstalledMemory:
    """Remembers nodes that had all they were asked for; what is missing is looked for each time."""

    def __init__(self) -> None:
        self._seen: dict[NodeName, tuple[Hashable, float, Installed]] = {}

    def recall(self, node: NodeName, asked: Hashable, now: float) -> Installed | None:
        """Return what a node had of what is asked for; None where that is not known, or was seen too long ago."""
        known, seen_at, installed = self._seen.get(node, (None, 0.0, None))
        return installed if known == asked and now - seen_at < REMEMBERED_S else None

    def note(self, node: NodeName, asked: Hashable, now: float, installed: Installed) -> None:
        """Remember a node that has everything."""
        self._seen[node] = (asked, now, installed)

    def forget(self) -> None:
        """Ask every node again."""
        self._seen.clear()

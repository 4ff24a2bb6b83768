"""I/O: this worker's place among the on-demand workers of its node: what it claims of the memory, and what it tells."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from runtime.worker.on_demand import memory
from runtime.worker.on_demand.registry import Entry, Registry
from runtime.worker.on_demand.room import expected_s, longest_s
from runtime.worker.settings import OnDemand as Terms
from runtime.worker.settings import Settings
from schemas.messages import Phase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a worker is, for its neighbours."""

    phase: Phase
    holds_memory: bool
    """The model is in memory, or on its way in or out."""
    is_idle: bool
    """It may be dropped for another one."""
    used_at: float
    """Seconds since the epoch."""


class Place:
    """Owns the worker's entry in the registry."""

    def __init__(self, settings: Settings, terms: Terms) -> None:
        """Join the neighbours; raises OSError where the registry cannot be written."""
        self.url = ""
        """Where this worker listens."""
        self._settings = settings
        self._terms = terms
        self._registry = Registry(Path(terms.room), None if terms.budget is None else Path(terms.budget))
        self._need = terms.memory_bytes or memory.need_bytes(settings)
        self._key = secrets.token_urlsafe(24)

    def is_key(self, key: str) -> bool:
        """Tell whether somebody knows what the neighbours were told."""
        return hmac.compare_digest(key.encode("utf-8", "surrogateescape"), self._key.encode())

    async def claim(self, standing: Standing) -> None:
        """Make room for the model and tell that its memory is held; raises NoRoomError."""
        await self._registry.claim(self._entry(standing))

    def tell(self, standing: Standing) -> None:
        """Tell the neighbours how this worker is."""
        try:
            self._registry.write(self._entry(standing))
        except OSError as error:
            logger.warning("the neighbours cannot be told: %s", error)

    def is_too_much(self, standing: Standing) -> bool:
        """Tell whether this model has to go, idle as it is: the services that always run have been left more."""
        return self._registry.is_too_much(self._entry(standing))

    def leave(self) -> None:
        """Leave the registry; nothing is told any more."""
        self._registry.close()

    def expected_s(self) -> float:
        """Return how long a load will take."""
        return expected_s(self._registry.last_load_s(self._settings.model_dir), memory.weights_of(self._settings))

    def longest_s(self) -> float:
        """Return after how long a load counts as stuck."""
        return longest_s(memory.weights_of(self._settings))

    def remember_load(self, load_s: float) -> None:
        """Note how long a load took, for the loads to come."""
        self._registry.remember_load(self._settings.model_dir, load_s)

    def _entry(self, standing: Standing) -> Entry:
        return Entry(
            service=self._terms.service,
            model=self._settings.name,
            pid=os.getpid(),
            url=self.url,
            key=self._key,
            memory_bytes=self._need if standing.holds_memory else 0,
            phase=standing.phase,
            is_idle=standing.is_idle,
            used_at=standing.used_at,
        )

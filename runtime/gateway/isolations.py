"""I/O: which endpoints somebody has isolated by hand, kept in a file: another process of the gateway leaves them alone.

The file is in the folder of `routes.json`, which all processes of one stack's gateway share. What leaves the stack is
forgotten.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from runtime.gateway.routing import by_hand
from runtime.gateway.routing.breaker import Isolated
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.table import EndpointIdentity

log = logging.getLogger(__name__)

FILE = "isolated.json"
LARGEST = 1024 * 1024
"""Bytes of a file that is read; ours have some hundred for each endpoint."""


class Isolations:
    """The endpoints that are isolated, in the pool and in the file. Used on one event loop."""

    def __init__(self, path: Path, pool: Pool) -> None:
        """Read what the process before has left at `path`; blocks, so it is made before anything is served."""
        self._path = path
        self._pool = pool
        self._kept = self._read()
        """What the file says."""
        self._is_restored = False
        self._lock = asyncio.Lock()

    def restore(self) -> None:
        """Isolate what was isolated before this process began, once the pool knows the first table's endpoints."""
        if self._is_restored:
            return
        self._is_restored = True
        for identity in self._kept:
            if identity in self._pool.standings:
                log.warning(
                    "isolated by hand, as before this start: endpoint=%s model=%s", identity.url, identity.model
                )
                by_hand.isolate(self._pool, identity)

    async def save(self) -> None:
        """Write the file, if it says something else than the pool."""
        async with self._lock:
            if not self._is_restored:
                return
            isolated = frozenset(
                identity
                for identity, standing in self._pool.standings.items()
                if standing.is_listed and isinstance(standing.breaker, Isolated)
            )
            if isolated == self._kept:
                return
            try:
                await asyncio.to_thread(self._write, isolated)
            except OSError as error:
                log.warning("isolated endpoints are known to this process only: %s: %s", self._path, error.strerror)
            else:
                self._kept = isolated

    def _read(self) -> frozenset[EndpointIdentity]:
        try:
            with self._path.open("rb") as file:
                return frozenset(_identity(entry) for entry in json.loads(file.read(LARGEST))["isolated"])
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, TypeError, LookupError) as error:
            log.warning("what was isolated by hand is not known any more: %s: %s", self._path, error)
            return frozenset()

    def _write(self, isolated: Collection[EndpointIdentity]) -> None:
        fresh = self._path.with_suffix(".new")
        document = {"isolated": [identity._asdict() for identity in sorted(isolated)]}
        fresh.touch(mode=0o600)
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)


def _identity(entry: dict[str, Any]) -> EndpointIdentity:
    return EndpointIdentity(
        str(entry["scheme"]),
        str(entry["host"]),
        int(entry["port"]),
        str(entry["base_path"]),
        str(entry["engine"]),
        str(entry["model"]),
    )

"""I/O: which endpoints somebody has isolated by hand, kept in a file: another process of the gateway leaves them alone.

The file is in the folder of `routes.json`, which all processes of one stack's gateway share. While one takes over from
another, both may be told: each adds what was done there to what the file says by then, and does what the other was told
with its next reload. What leaves the stack is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from runtime.gateway.routing import by_hand
from runtime.gateway.routing.breaker import Isolated
from runtime.gateway.routing.pool import Pool
from runtime.gateway.routing.table import EndpointIdentity

log = logging.getLogger(__name__)

FILE = "isolated.json"
BUSY_S = 2.0
"""How long another process may take to change the file; it is tried again with the next reload."""
LOOK_S = 0.01
LARGEST = 1024 * 1024
"""Bytes of a file that is read; ours have some hundred for each endpoint."""


class Isolations:
    """The endpoints that are isolated, in the pool and in the file. Used on one event loop."""

    def __init__(self, path: Path, pool: Pool) -> None:
        """Read what the process before has left at `path`; blocks, so it is made before anything is served."""
        self._path = path
        self._pool = pool
        self._kept = self._read() or frozenset()
        """What the file says."""
        self._seen = self._look()
        """What tells that writing of the file from another one."""
        self._is_restored = False
        self._lock = asyncio.Lock()
        self._saving: set[asyncio.Task[None]] = set()

    def restore(self) -> None:
        """Isolate what was isolated before this process began, once the pool knows the first table's endpoints."""
        if not self._is_restored:
            self._is_restored = True
            self._isolate(self._kept, "as before this start")

    async def save(self) -> None:
        """Bring the file and the pool to say the same. What was begun is done, whoever leaves meanwhile."""
        saving = asyncio.create_task(self._save())
        self._saving.add(saving)
        saving.add_done_callback(self._saving.discard)
        await asyncio.shield(saving)

    async def _save(self) -> None:
        async with self._lock:
            if not self._is_restored:
                return
            isolated = self._isolated()
            if isolated == self._kept and self._look() == self._seen:
                return
            try:
                kept = await asyncio.to_thread(self._exchange, isolated - self._kept, self._kept - isolated)
            except OSError as error:
                log.warning("isolated endpoints are known to this process only: %s: %s", self._path, error.strerror)
                return
            before, self._kept = self._kept, kept
            self._isolate(kept - before - isolated, "in another process of this gateway")
            for identity in (before & isolated) - kept:
                if identity in self._isolated():
                    log.warning("not isolated any more: endpoint=%s model=%s", identity.url, identity.model)
                    by_hand.close(self._pool, identity)

    def _isolate(self, identities: Collection[EndpointIdentity], why: str) -> None:
        for identity in identities:
            if by_hand.isolate_again(self._pool, identity):
                log.warning("isolated by hand, %s: endpoint=%s model=%s", why, identity.url, identity.model)

    def _isolated(self) -> frozenset[EndpointIdentity]:
        return frozenset(
            identity
            for identity, standing in self._pool.standings.items()
            if standing.is_listed and isinstance(standing.breaker, Isolated)
        )

    def _exchange(
        self, added: frozenset[EndpointIdentity], removed: frozenset[EndpointIdentity]
    ) -> frozenset[EndpointIdentity]:
        """Change the file, and return what it says then; raises `OSError`."""
        with self._alone():
            found = self._read()
            kept = ((self._kept if found is None else found) | added) - removed
            if kept != found:
                self._write(kept)
            self._seen = self._look()
            return kept

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the file; raises `OSError` where one of them does not come to an end."""
        handle = os.open(self._path.parent, os.O_RDONLY)
        deadline = time.monotonic() + BUSY_S
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(LOOK_S)
            yield
        finally:
            os.close(handle)

    def _look(self) -> tuple[int, int] | None:
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_ino

    def _read(self) -> frozenset[EndpointIdentity] | None:
        """Return what the file says; None where there is none, or none that makes sense."""
        try:
            with self._path.open("rb") as file:
                return frozenset(_identity(entry) for entry in json.loads(file.read(LARGEST))["isolated"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError) as error:
            log.warning("what was isolated by hand is not known any more: %s: %s", self._path, error)
            return None

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

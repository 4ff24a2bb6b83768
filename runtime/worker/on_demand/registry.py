"""I/O: what the on-demand workers of one node know of each other: files in a directory that they share.

    lock                        held while one of them makes room and claims memory
    workers/<name>.json, .lock  what a worker holds; its flock is the worker's life, so that a killed one holds nothing
    loads/<digest>.json         how long the last load of a model took

Directories are readable by their user alone: an entry carries the key with which its worker may be asked to unload.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from pydantic import ValidationError

from runtime.worker.on_demand.room import GIB, Holder, budget_bytes, shortage, to_evict, too_much
from schemas.base import Frozen
from schemas.messages import Phase
from schemas.on_demand import Allotment

logger = logging.getLogger(__name__)

LOCK_POLL_S = 0.05
LOCK_S = 90.0
"""How long a neighbour may hold the lock before it counts as stuck: it asks several workers at once, each for
UNLOAD_S, and others in their place only where one refuses."""
UNLOAD_S = 60.0
"""What a worker gets to give its memory back."""


class NoRoomError(Exception):
    """There is not enough memory for a model now; the text says who holds it."""


class Entry(Frozen):
    """What a worker tells its neighbours."""

    service: str
    model: str
    pid: int
    url: str
    """Where it can be asked to unload."""
    key: str
    """What has to be shown for that."""
    memory_bytes: int
    """What it holds or has claimed; 0 while it is cold."""
    phase: Phase
    is_idle: bool
    used_at: float
    """Seconds since the epoch."""


class Registry:
    """One worker's place among its neighbours. Owns its files."""

    def __init__(self, directory: Path, allotment: Path | None) -> None:
        """`allotment` names the file with the budget; none leaves it unbounded. Those of other stacks are in
        `directory`. Raises OSError.
        """
        self._directory = directory
        self._allotment = allotment
        self._workers, self._loads = directory / "workers", directory / "loads"
        for path in (directory, self._workers, self._loads):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._life = os.open(self._workers / f"{self.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._life, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._is_closed = False
        self._declared_gib: float | None = None

    def write(self, entry: Entry) -> None:
        """Tell the neighbours how this worker is; one that has left tells nothing."""
        if self._is_closed:
            return
        _replace(self._workers / f"{self.name}.json", self._needed(entry).model_dump_json())

    def close(self) -> None:
        """Leave; once more does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for suffix in ("json", "lock"):
            (self._workers / f"{self.name}.{suffix}").unlink(missing_ok=True)
        os.close(self._life)

    async def claim(self, entry: Entry) -> None:
        """Make room for what `entry` holds and write it; raises NoRoomError where that much cannot be had now.

        What the files declare for its model goes before what the worker reckons. Idle neighbours are asked to unload.
        One that does not, because it came into use meanwhile, is left in peace.
        """
        async with self._alone():
            unwilling: set[str] = set()
            if self._allotment is not None:
                self._declared_gib = _read(self._allotment).needs_gib.get(entry.service)
                entry = self._needed(entry)
            while (budget := self._budget()) is not None:
                neighbours = dict(self._neighbours())
                holders = [_holder(name, other, name in unwilling) for name, other in neighbours.items()]
                chosen = to_evict(holders, entry.memory_bytes, budget)
                if chosen is None:
                    raise NoRoomError(shortage(entry.service, entry.memory_bytes, budget, holders))
                if not chosen:
                    break
                names = [holder.worker for holder in chosen]
                answers = await asyncio.gather(*(_unload(neighbours[name]) for name in names))
                unwilling |= {name for name, is_done in zip(names, answers, strict=True) if not is_done}
            self.write(entry)

    def is_too_much(self, entry: Entry) -> bool:
        """Tell whether what `entry` holds has to go because less is left than all hold; False where nobody can tell.

        Everybody finds the same, so each needs to look after itself only; who goes already is enough where it is.
        """
        own = _holder(self.name, self._needed(entry), is_unwilling=False)
        try:
            budget = self._budget()
            staying = (found for found in self._neighbours() if found[1].phase != "unloading")
            holders = [own, *(_holder(name, other, is_unwilling=False) for name, other in staying)]
        except (NoRoomError, OSError):
            return False
        return budget is not None and own in too_much(holders, budget)

    def last_load_s(self, model_dir: str) -> float | None:
        """Return how long the last load of a model on this node took."""
        try:
            return float(json.loads(self._load_path(model_dir).read_text())["load_s"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember_load(self, model_dir: str, load_s: float) -> None:
        """Note how long a load took."""
        with contextlib.suppress(OSError):  # it only makes the next estimate better
            _replace(self._load_path(model_dir), json.dumps({"model_dir": model_dir, "load_s": round(load_s, 3)}))

    def _load_path(self, model_dir: str) -> Path:
        return self._loads / f"{hashlib.sha256(model_dir.encode()).hexdigest()[:16]}.json"

    def _budget(self) -> int | None:
        if self._allotment is None:
            return None
        others = (_read_other(path) for path in sorted(self._directory.glob("*.json")) if path != self._allotment)
        return budget_bytes([_read(self._allotment), *(each for each in others if each is not None)], _physical_bytes())

    def _needed(self, entry: Entry) -> Entry:
        """Return an entry with what the files declare for the model, as they were at the last claim."""
        if self._declared_gib is None or not entry.memory_bytes:
            return entry
        return entry.model_copy(update={"memory_bytes": int(self._declared_gib * GIB)})

    def _neighbours(self) -> Iterator[tuple[str, Entry]]:
        """Yield the living ones, and remove what dead ones left."""
        for path in sorted(self._workers.glob("*.json")):
            if path.stem == self.name:
                continue
            if not _is_held(path.with_suffix(".lock")):
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)
                continue
            try:
                yield path.stem, Entry.from_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                logger.warning("%s is left out: %s", path, error)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Hold the node's lock: two workers that make room at once would both count on the same memory."""
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                async with asyncio.timeout(LOCK_S):
                    while not _take(lock):
                        await asyncio.sleep(LOCK_POLL_S)
            except TimeoutError:
                raise NoRoomError(
                    f"Another worker of this node has been making room for {LOCK_S:.0f} s and does not end."
                ) from None
            yield
        finally:
            os.close(lock)


def _read(path: Path) -> Allotment:
    try:
        return Allotment.from_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        logger.warning("%s cannot be read: %s", path, error)
        raise NoRoomError(
            f"What memory on-demand models may have is unknown: {path.name} cannot be read; apply the stack again."
        ) from error


def _read_other(path: Path) -> Allotment | None:
    """Return what another stack leaves to on-demand models; None where it was taken down since its file was found."""
    try:
        return _read(path)
    except NoRoomError:
        if path.exists():
            raise
        return None


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _holder(name: str, entry: Entry, is_unwilling: bool) -> Holder:
    return Holder(name, entry.service, entry.memory_bytes, entry.used_at, entry.is_idle and not is_unwilling)


async def _unload(entry: Entry) -> bool:
    """Ask a neighbour for its memory; False where it is in use, or does not answer."""
    headers = {"authorization": f"Bearer {entry.key}"}
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=UNLOAD_S) as http:
            answer = await http.post(f"{entry.url}/unload", headers=headers)
    except httpx.HTTPError as error:
        logger.warning("'%s' (pid %d) did not unload: %s", entry.service, entry.pid, error or type(error).__name__)
        return False
    return answer.status_code == 200


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.replace(path)

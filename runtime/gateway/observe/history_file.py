"""I/O: the file in which past requests and errors outlive the process: SQLite, used on one thread.

The file is shared with the process that this one replaces, or is replaced by, as long as both live.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.history import ErrorGroup, PastError, PastRequest

log = logging.getLogger(__name__)

KEPT_REQUESTS = 20_000
KEPT_ERRORS = 5_000
"""Older ones are deleted: together some 15 MB."""
MOST_GROUPS = 100
BUSY_S = 2.0
"""How long the other process may keep the file to itself."""
VERSION = 1
"""Of the tables; a file of another one is put aside, as nothing in it is needed."""

RETRY_S = 30.0
"""Between two tries to open a file that could not be opened; its rows are in memory meanwhile."""
ASIDE = ".aside"
"""What is put behind the name of a file that is of no use here; it is kept until there is another one."""

_TABLES = (
    "CREATE TABLE requests (number INTEGER PRIMARY KEY, role TEXT, status INTEGER, document TEXT NOT NULL)",
    """CREATE TABLE errors (
    number INTEGER PRIMARY KEY, role TEXT, status INTEGER, endpoint TEXT, outcome TEXT, at REAL, document TEXT NOT NULL
)""",
)
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows are asked for; None means any."""

    limit: int
    role: str | None = None
    status: int | None = None


class HistoryFile:
    """One file, or a database in memory where there is no path, or for as long as nothing can be written there."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._is_in_memory = True
        self._retry_at = 0.0
        self._database = _prepared(sqlite3.connect(":memory:", check_same_thread=False))
        self._settle()

    def write(self, requests: Sequence[PastRequest], errors: Sequence[PastError]) -> None:
        """Add rows and delete the oldest; raises `sqlite3.Error`."""
        self._settle()
        _write(self._database, requests, errors)

    def requests(self, wanted: Wanted) -> tuple[PastRequest, ...]:
        """Return requests, the newest first; raises `sqlite3.Error`."""
        return tuple(PastRequest.model_validate_json(document) for document in self._rows("requests", wanted))

    def errors(self, wanted: Wanted) -> tuple[PastError, ...]:
        """Return errors, the newest first; raises `sqlite3.Error`."""
        return tuple(PastError.model_validate_json(document) for document in self._rows("errors", wanted))

    def groups(self, wanted: Wanted) -> tuple[ErrorGroup, ...]:
        """Return how many of the kept errors are alike, the most frequent first; raises `sqlite3.Error`."""
        self._settle()
        where, values = _where(wanted)
        found = self._database.execute(
            f"SELECT endpoint, outcome, count(*), max(at) FROM errors{where} "  # noqa: S608 - no text of anybody else
            "GROUP BY endpoint, outcome ORDER BY count(*) DESC, endpoint, outcome LIMIT ?",
            (*values, MOST_GROUPS),
        )
        return tuple(
            ErrorGroup(endpoint=endpoint, outcome=outcome, count=count, last_at=at)
            for endpoint, outcome, count, at in found
        )

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def _rows(self, table: str, wanted: Wanted) -> list[str]:
        self._settle()
        where, values = _where(wanted)
        found = self._database.execute(
            f"SELECT document FROM {table}{where} ORDER BY number DESC LIMIT ?",  # noqa: S608 - no text of anybody else
            (*values, wanted.limit),
        )
        return [document for (document,) in found]

    def _settle(self) -> None:
        """Go over from memory to the file, with all rows, as soon as that can be written."""
        if self._path is None or not self._is_in_memory or time.monotonic() < self._retry_at:
            return
        is_first, self._retry_at = not self._retry_at, time.monotonic() + RETRY_S
        try:
            opened = _opened(self._path)
        except (OSError, sqlite3.Error) as error:
            if is_first:
                log.warning("the request history is in memory for now: file=%s reason=%s", self._path, error)
            return
        try:
            _write(opened, *_all_rows(self._database))
        except sqlite3.Error:
            opened.close()
            return
        self._database.close()
        self._database, self._is_in_memory = opened, False


class _OtherVersionError(Exception):
    """The tables of a file are those of another release."""


def _write(database: sqlite3.Connection, requests: Iterable[PastRequest], errors: Iterable[PastError]) -> None:
    with database:
        database.executemany(
            "INSERT INTO requests (role, status, document) VALUES (?, ?, ?)",
            [(one.role, one.status, one.model_dump_json()) for one in requests],
        )
        database.executemany(
            "INSERT INTO errors (role, status, endpoint, outcome, at, document) VALUES (?, ?, ?, ?, ?, ?)",
            [(one.role, one.status, one.endpoint, one.outcome, one.at, one.model_dump_json()) for one in errors],
        )
        for table, kept in (("requests", KEPT_REQUESTS), ("errors", KEPT_ERRORS)):
            database.execute(
                f"DELETE FROM {table} WHERE number <= (SELECT max(number) FROM {table}) - ?",  # noqa: S608 - ours
                (kept,),
            )


def _all_rows(database: sqlite3.Connection) -> tuple[Iterator[PastRequest], Iterator[PastError]]:
    """Return what there is, the oldest first."""
    requests = database.execute("SELECT document FROM requests ORDER BY number")
    errors = database.execute("SELECT document FROM errors ORDER BY number")
    return (
        (PastRequest.model_validate_json(document) for (document,) in requests),
        (PastError.model_validate_json(document) for (document,) in errors),
    )


def _opened(path: Path) -> sqlite3.Connection:
    """Open a file that only its owner can read; raises `OSError` and `sqlite3.Error`.

    One that is damaged, or of another release, is put aside. Whoever else uses it at this moment goes on with that one.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with _alone(path.parent):
        try:
            return _connected(path)
        except _OtherVersionError as error:
            reason = str(error)
        except sqlite3.DatabaseError as error:
            # The upper bits say more of the same (sqlite.org/rescode.html).
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                raise
            reason = str(error)
        log.warning("the request history begins anew, the file is put aside: file=%s reason=%s", path, reason)
        aside = path.with_name(path.name + ASIDE)
        for end in ("-wal", "-shm", ""):
            old, new = path.with_name(path.name + end), aside.with_name(aside.name + end)
            if old.exists():
                old.replace(new)
            else:
                new.unlink(missing_ok=True)
        try:
            return _connected(path)
        except _OtherVersionError as error:
            raise OSError(str(error)) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other gateways that open a file in the folder waiting."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _connected(path: Path) -> sqlite3.Connection:
    """Raises `_OtherVersionError`, `OSError` and `sqlite3.Error`."""
    path.touch(mode=0o600)
    database = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # A crash of the machine may lose the last rows, never the file (sqlite.org/pragma.html#pragma_synchronous).
        database.execute("PRAGMA synchronous = NORMAL")
        return _prepared(database)
    except BaseException:
        database.close()
        raise


def _prepared(database: sqlite3.Connection) -> sqlite3.Connection:
    """Make the tables where there are none; raises `_OtherVersionError` and `sqlite3.Error`."""
    if _version(database) != VERSION:
        with database:
            database.execute("BEGIN IMMEDIATE")
            # Looked at again: another process may have made the tables meanwhile.
            version = _version(database)
            if version not in (0, VERSION):
                raise _OtherVersionError(f"it is of version {version}, this is {VERSION}")
            if version == 0:
                for statement in _TABLES:
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {VERSION}")
    return database


def _version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def _where(wanted: Wanted) -> tuple[str, tuple[object, ...]]:
    asked = [(name, value) for name, value in (("role", wanted.role), ("status", wanted.status)) if value is not None]
    text = " AND ".join(f"{name} = ?" for name, _ in asked)
    return (f" WHERE {text}" if text else ""), tuple(value for _, value in asked)

"""I/O: the file in which past requests and errors outlive the process: SQLite, used on one thread.

The file is shared with the process that this one replaces, or is replaced by, as long as both live.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Sequence
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
"""Of the tables; a file of another one begins anew, as nothing in it is needed."""

_TABLES = """
CREATE TABLE requests (number INTEGER PRIMARY KEY, role TEXT, status INTEGER, document TEXT NOT NULL);
CREATE TABLE errors (
    number INTEGER PRIMARY KEY, role TEXT, status INTEGER, endpoint TEXT, outcome TEXT, at REAL, document TEXT NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows are asked for; None means any."""

    limit: int
    role: str | None = None
    status: int | None = None


class HistoryFile:
    """One open file, or a database in memory where there is no path or nothing can be written there."""

    def __init__(self, path: Path | None) -> None:
        self._database = self._open(path)

    def write(self, requests: Sequence[PastRequest], errors: Sequence[PastError]) -> None:
        """Add rows and delete the oldest; raises `sqlite3.Error`."""
        with self._database as database:
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

    def requests(self, wanted: Wanted) -> tuple[PastRequest, ...]:
        """Return requests, the newest first; raises `sqlite3.Error`."""
        return tuple(PastRequest.model_validate_json(document) for document in self._rows("requests", wanted))

    def errors(self, wanted: Wanted) -> tuple[PastError, ...]:
        """Return errors, the newest first; raises `sqlite3.Error`."""
        return tuple(PastError.model_validate_json(document) for document in self._rows("errors", wanted))

    def groups(self, wanted: Wanted) -> tuple[ErrorGroup, ...]:
        """Return how many of the kept errors are alike, the most frequent first; raises `sqlite3.Error`."""
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
        where, values = _where(wanted)
        found = self._database.execute(
            f"SELECT document FROM {table}{where} ORDER BY number DESC LIMIT ?",  # noqa: S608 - no text of anybody else
            (*values, wanted.limit),
        )
        return [document for (document,) in found]

    def _open(self, path: Path | None) -> sqlite3.Connection:
        if path is not None:
            try:
                return _opened(path)
            except sqlite3.DatabaseError as error:
                log.warning("the request history begins anew: file=%s reason=%s", path, error)
            except OSError as error:
                log.warning("the request history is not kept: file=%s reason=%s", path, error.strerror)
                return _prepared(sqlite3.connect(":memory:", check_same_thread=False))
            try:
                for stale in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
                    stale.unlink(missing_ok=True)
                return _opened(path)
            except (OSError, sqlite3.Error) as error:
                log.warning("the request history is not kept: file=%s reason=%s", path, error)
        return _prepared(sqlite3.connect(":memory:", check_same_thread=False))


def _opened(path: Path) -> sqlite3.Connection:
    """Open a file that only its owner can read; raises `OSError` and `sqlite3.Error`."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
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
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return database
    if version:
        raise sqlite3.DatabaseError(f"it is of version {version}, this is {VERSION}")
    with contextlib.closing(database.cursor()) as cursor:
        cursor.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
    return database


def _where(wanted: Wanted) -> tuple[str, tuple[object, ...]]:
    asked = [(name, value) for name, value in (("role", wanted.role), ("status", wanted.status)) if value is not None]
    text = " AND ".join(f"{name} = ?" for name, _ in asked)
    return (f" WHERE {text}" if text else ""), tuple(value for _, value in asked)

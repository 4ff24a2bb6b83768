"""I/O: supervise units on one node. Standard library only: this file is copied to nodes and run there as it is.

`python3 shim.py VERB` reads one JSON object on one line of stdin and prints one JSON object:
`{"version": 1, "ok": true, ...}`, or `{"version": 1, "ok": false, "error": {"code": ..., "message": ...}}` with exit
code 1. Verbs: start, stop, list, logs (raw text), watch (a line a change), lock, gc, forgive, audit, doctor. Every
request names `state`, an absolute directory:

    gate                          held for microseconds around every look at, or take of, a unit's lock
    locks/<name>                  advisory locks of callers; the content names the holder
    audit.jsonl, audit.jsonl.1    what was done here: start, stop, gc, forgive, and ends that nobody asked for
    units/<stack>/<unit>/lock     its flock is the unit's life
    units/<stack>/<unit>/record.json, log, log.1
    units/<stack>/<unit>/ends.jsonl, asked, forgiven    how earlier runs ended; the launch whose end was asked for, or
                                                        was forgiven

A unit lives while its lock is held. The supervisor (the process this file forks away) and the child share one open
file description of it, so the lock is freed by the kernel when the last of them is gone and by nothing else. Therefore:

* A second start is refused, whoever was killed before.
* A supervisor killed with -9 leaves the child alive (`shim_alive` false); `stop` still ends the whole group. A child
  that writes after that gets EPIPE: it may die, it never hangs.
* When the leader exits the unit is over: what is left of its group gets TERM, then KILL after the grace.
* A process that left the group and the session but kept the lock keeps the unit alive: no double is started beside it.
  `stop` finds it as a holder of the lock and ends it.

A pid alone is never signalled. A group counts as ours when its number, its session and the boot are those of the record
and the leader, if the pid exists, has the recorded start time; any other process must hold the lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import select
import signal
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Json = dict[str, Any]

VERSION = 1
LOWEST_PYTHON = (3, 11)
LINUX = sys.platform.startswith("linux")

POLL_S = 0.02
SETTLE_S = 2.0  # after KILL: how long the supervisor gets to record the exit before it is killed too
GIVE_UP_S = 10.0  # after KILL: a process that is still there sleeps uninterruptibly in the kernel
LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 16 * 1024
DRAIN_BYTES = 1024 * 1024
COMMAND_CHARS = 200
ENDS_KEPT = 10
AUDIT_BYTES = 1024 * 1024
AUDITED = frozenset({"start", "stop", "gc", "forgive"})
WATCH_POLL_S = 0.25

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,199}")


class RefusedError(Exception):
    """A request that cannot be met; `code` is for programs, the text for people."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.details = details


# ---------------------------------------------------------------------------------------------------------------------
# Requests
# ---------------------------------------------------------------------------------------------------------------------


def read_request() -> Json:
    """Read the one line of JSON; what follows on stdin is left to the verb."""
    try:
        request = json.loads(sys.stdin.buffer.readline())
    except ValueError as error:
        raise RefusedError("bad_request", f"stdin must carry one JSON object on one line: {error}") from error
    if not isinstance(request, dict):
        raise RefusedError("bad_request", "stdin must carry one JSON object on one line")
    return request


def field(request: Json, key: str, kind: type, default: Any = None) -> Any:
    """Return `request[key]`, checked to be of `kind`; without a default the key is required."""
    value = request.get(key, default)
    is_number = kind is float and isinstance(value, int | float)
    if isinstance(value, bool) is not (kind is bool) or not (is_number or isinstance(value, kind)):
        raise RefusedError("bad_request", f"{key}: expected {kind.__name__}, found {type(value).__name__}")
    if is_number and not 0 <= value <= 86400:
        raise RefusedError("bad_request", f"{key}: expected 0 to 86400 seconds, found {value}")
    return value


def name(request: Json, key: str) -> str:
    """Return a name that is one harmless path component and never an option."""
    value = field(request, key, str)
    if not NAME.fullmatch(value):
        raise RefusedError("bad_name", f"{key}: {value!r} must match {NAME.pattern}")
    return str(value)


def encoded(value: Any, key: str) -> bytes:
    """Return a string as the bytes that exec passes on, whatever the locale of the node is."""
    if not isinstance(value, str) or "\0" in value:
        raise RefusedError("bad_request", f"{key}: expected strings without NUL")
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise RefusedError("bad_request", f"{key}: {error}") from error


def items(request: Json, key: str, kind: type) -> list[Any]:
    """Return a list, empty by default, whose items are all of `kind`."""
    values: list[Any] = field(request, key, list, [])
    for value in values:
        field({key: value}, key, kind)
    return values


def state_of(request: Json) -> Path:
    """Return the state directory, made if it is missing."""
    text = field(request, "state", str)
    if not text.startswith("/") or "\0" in text:
        raise RefusedError("bad_request", f"state: expected an absolute path, found {text!r}")
    state = Path(text)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return state


class Unit(NamedTuple):
    """Where one unit keeps its files."""

    state: Path
    stack: str
    unit: str

    @property
    def directory(self) -> Path:
        return self.state / "units" / self.stack / self.unit

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def log(self) -> Path:
        return self.directory / "log"


def unit_of(request: Json) -> Unit:
    """Return the unit that a request names."""
    return Unit(state_of(request), name(request, "stack"), name(request, "unit"))


# ---------------------------------------------------------------------------------------------------------------------
# Locks
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def gate(state: Path) -> Iterator[None]:
    """Exclude every other shim for a moment.

    Lock files of units are opened only inside: so a look never makes a start fail, a directory is never removed between
    the open and the flock of a start, and who has a lock file open while we are inside belongs to the unit.
    """
    descriptor = os.open(state / "gate", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def take(path: Path, *, create: bool) -> int | None:
    """Take the flock of `path` and return its descriptor, or None while another holds it.

    Release it by closing, never with LOCK_UN: that would free it for every process that inherited the descriptor.
    """
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_held(path: Path) -> bool:
    """Whether a unit's lock is held. Call it inside the gate."""
    try:
        descriptor = take(path, create=False)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A live process; `started` only has to be equal for the same process and different for a recycled pid."""

    pid: int
    pgid: int
    sid: int
    started: str


def run_tool(*argv: str) -> str:
    """Return what a system tool prints, empty when it is missing or fails (macOS has no /proc)."""
    import subprocess

    try:
        done = subprocess.run(
            argv, capture_output=True, check=False, timeout=20, env={**os.environ, "LC_ALL": "C"}, encoding="utf-8"
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def processes() -> dict[int, Process]:
    """Return every live process by pid. Zombies are left out: they hold nothing and cannot be signalled."""
    found: dict[int, Process] = {}
    if LINUX:
        for pid in pids():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # proc(5): the name is in parentheses and may contain any character, so count from the last one.
                fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                if fields[0] not in {"Z", "X"}:
                    found[pid] = Process(pid, int(fields[2]), int(fields[3]), fields[19])
        return found
    for line in run_tool("ps", "-axo", "pid=,pgid=,stat=,lstart=").splitlines():
        with contextlib.suppress(OSError, ValueError):
            pid_text, pgid_text, status, started = line.split(None, 3)
            if not status.startswith("Z"):
                found[int(pid_text)] = Process(
                    int(pid_text), int(pgid_text), os.getsid(int(pid_text)), " ".join(started.split())
                )
    return found


def pids() -> list[int]:
    """Return every pid that Linux shows us."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def open_files(pid: int) -> Iterator[str]:
    """Yield what the descriptors of a process point to (Linux); nothing where we may not look."""
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)  # noqa: PTH208 - paths as objects take thrice the time, of every process here
    except OSError:
        return
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            yield os.readlink(f"{folder}/{descriptor}")  # noqa: PTH115


@functools.cache
def boot_id() -> str:
    """Return what names this boot: pids and start times mean nothing across boots."""
    if LINUX:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return run_tool("sysctl", "-n", "kern.bootsessionuuid").strip()


def command_of(pid: int) -> str:
    """Return the command line of a process for people to recognise it by."""
    if not LINUX:
        return run_tool("ps", "-o", "command=", "-p", str(pid)).strip()[:COMMAND_CHARS]
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return words[:COMMAND_CHARS] or Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def group_of(record: Json | None) -> list[Process]:
    """Return the live members of a record's process group; none when the pid has been recycled."""
    if record is None or record["pid"] is None or record["boot_id"] != boot_id():
        return []
    table = processes()
    leader = table.get(record["pid"])
    if leader is not None and leader.started != record["started"]:
        return []
    return [p for p in table.values() if p.pgid == record["pid"] and p.sid == record["sid"]]


def supervisor_of(record: Json | None, table: dict[int, Process]) -> int | None:
    """Return the pid of the live supervisor that a record names."""
    if record is None or record["shim_pid"] is None or record["boot_id"] != boot_id():
        return None
    found = table.get(record["shim_pid"])
    return found.pid if found is not None and found.started == record["shim_started"] else None


def holders_of(lock: Path) -> set[int]:
    """Return the pids that hold a unit's lock. Call it inside the gate, where nobody else has the file open."""
    target = str(lock.resolve())
    if LINUX:
        found = {pid for pid in pids() if target in open_files(pid)}
    else:
        found = {int(line) for line in run_tool("lsof", "-t", "--", target).split()}
    return found - {os.getpid()}


def send(number: int, group: Iterable[Process], others: Iterable[int] = ()) -> None:
    """Signal a group that was just seen alive, and single processes; TERM also wakes what is stopped."""
    numbers = (signal.SIGTERM, signal.SIGCONT) if number == signal.SIGTERM else (number,)
    for each in numbers:
        for pgid in {process.pgid for process in group}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pgid, each)
        for pid in others:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, each)


def end_group(record: Json | None, grace_s: float) -> bool:
    """End what is left of a record's group, and say whether anything was."""
    if not group_of(record):
        return False
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, GIVE_UP_S)):
        send(number, group_of(record))
        deadline = time.monotonic() + wait_s
        while group_of(record) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------

RECORD_TYPES: dict[str, tuple[type, ...]] = {
    "launch": (str,),
    "phase": (str,),
    "pid": (int, type(None)),
    "sid": (int, type(None)),
    "started": (str, type(None)),
    "shim_pid": (int, type(None)),
    "shim_started": (str, type(None)),
    "boot_id": (str,),
    "labels": (dict,),
    "started_at": (int, float, type(None)),
    "exit_code": (int, type(None)),
    "exit_signal": (int, type(None)),
    "exited_at": (int, float, type(None)),
}


def read_record(directory: Path) -> Json | None:
    """Return a unit's record, or None when it is missing, torn or not ours."""
    try:
        record = json.loads((directory / "record.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("version") != VERSION:
        return None
    whole = all(key in record and isinstance(record[key], types) for key, types in RECORD_TYPES.items())
    return record if whole and all(isinstance(value, str) for value in record["labels"].values()) else None


def write_record(directory: Path, record: Json) -> None:
    """Replace a unit's record, on disk when it returns."""
    replace_file(directory / "record.json", json.dumps(record).encode(), flush=True)


def replace_file(path: Path, data: bytes, *, flush: bool) -> None:
    """Replace a file: a reader sees the old or the new one, and so does, with `flush`, a node that lost its power."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            if flush:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if flush:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Ends: how the runs of a unit were over, kept across its starts
# ---------------------------------------------------------------------------------------------------------------------


def end_of(unit: Unit, record: Json | None) -> Json | None:
    """Return how the run of a dead unit's record ended, in `how`:

    `asked` by a stop, `forgiven` since, `rebooted` with its node, or `died`. Where nobody saw the end, `exited_at` is
    the last sign of life: the latest writing of its record or its log.
    """
    if record is None or record["launch"] is None:
        return None
    exited_at = record["exited_at"]
    if exited_at is None:
        exited_at = max(
            (written for path in (unit.directory / "record.json", unit.log) if (written := mtime(path))), default=0
        )
    if marked(unit, "asked") == record["launch"]:
        how = "asked"
    elif marked(unit, "forgiven") == record["launch"]:
        how = "forgiven"
    else:
        how = "rebooted" if record["phase"] != "exited" and record["boot_id"] != boot_id() else "died"
    found = {key: record[key] for key in ("started_at", "exit_code", "exit_signal")}
    return {**found, "exited_at": exited_at, "how": how}


def mtime(path: Path) -> float | None:
    """Return when a file was written last, or None without one."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def mark(unit: Unit, what: str, launch: str) -> None:
    """Note a launch in one of the unit's marker files. On a full disk it is lost, and the end counts as a crash."""
    with contextlib.suppress(OSError):
        replace_file(unit.directory / what, launch.encode(), flush=False)


def marked(unit: Unit, what: str) -> str | None:
    """Return the launch that a marker file names."""
    try:
        return (unit.directory / what).read_text("utf-8", "replace")
    except OSError:
        return None


def read_ends(unit: Unit) -> list[Json]:
    """Return how the runs before the record's ended, oldest first. Torn lines are passed over."""
    try:
        lines = (unit.directory / "ends.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    found: list[Json] = []
    for line in lines[-ENDS_KEPT:]:
        with contextlib.suppress(ValueError, RecursionError):
            end = json.loads(line)
            if isinstance(end, dict) and isinstance(end.get("exited_at"), int | float) and "how" in end:
                found.append(end)
    return found


def write_ends(unit: Unit, ends: list[Json]) -> None:
    """Keep the last ends of a unit. Call it inside the gate: `start` adds to them and `forgive` changes them."""
    text = "".join(json.dumps(end) + "\n" for end in ends[-ENDS_KEPT:])
    with contextlib.suppress(OSError):
        replace_file(unit.directory / "ends.jsonl", text.encode(), flush=False)


def forgive(request: Json) -> Json:
    """Let the ends of some units so far count as crashes no more; answer with the units that had any."""
    state, stack = state_of(request), name(request, "stack")
    wanted, forgiven = set(items(request, "units", str)), []
    for unit in all_units(state, stack):
        if unit.unit not in wanted:
            continue
        with gate(state):
            ends, record = read_ends(unit), read_record(unit.directory)
            last = None if is_held(unit.lock) else end_of(unit, record)
            if any(end["how"] == "died" for end in (*ends, last or {"how": ""})):
                forgiven.append(unit.unit)
            write_ends(unit, [{**end, "how": "forgiven"} if end["how"] == "died" else end for end in ends])
            if record is not None and last is not None and last["how"] == "died":
                mark(unit, "forgiven", record["launch"])
    return {"forgiven": forgiven}


# ---------------------------------------------------------------------------------------------------------------------
# Audit
# ---------------------------------------------------------------------------------------------------------------------


def write_audit(state: Path, line: Json) -> None:
    """Append one line to the node's audit, which takes at most twice its cap. It never makes a verb fail."""
    path = state / "audit.jsonl"
    try:
        with gate(state):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, b"\n" * torn + json.dumps({"version": VERSION, **line}).encode() + b"\n")
                if os.fstat(descriptor).st_size >= AUDIT_BYTES:
                    path.replace(path.with_name("audit.jsonl.1"))
            finally:
                os.close(descriptor)
    except OSError:
        return


def audit_verb(verb: str, request: Json, answer: Json | None, error: Json | None) -> None:
    """Record what a verb did: when, to which stack and unit, for whom and which generation, and how it ended."""
    by = request.get("by")
    line = {"time": time.time(), "verb": verb, "stack": request.get("stack"), "unit": request.get("unit")}
    line.update(actor=None, generation=None, outcome="ok" if error is None else error["code"])
    if isinstance(by, dict):
        line.update({key: by[key] for key in ("actor", "generation") if isinstance(by.get(key), str | int)})
    if answer is not None:
        line["answer"] = answer
    write_audit(Path(request["state"]), line)


def audit(request: Json) -> Json:
    """Return the last `lines` lines of the node's audit, of one stack or of all, oldest first."""
    state, lines = state_of(request), field(request, "lines", int, 100)
    stack = name(request, "stack") if request.get("stack") is not None else None
    found: list[Json] = []
    for path in (state / "audit.jsonl.1", state / "audit.jsonl"):
        with contextlib.suppress(OSError):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and stack in {None, entry.get("stack")}:
                        found.append(entry)
    return {"lines": found[-lines:] if lines > 0 else []}


# ---------------------------------------------------------------------------------------------------------------------
# Logs
# ---------------------------------------------------------------------------------------------------------------------


class Log:
    """A log that never takes more than twice its cap: `log`, and `log.1` that it is moved to when full."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.lost_bytes = 0
        self.descriptor = self._open()
        opened = os.fstat(self.descriptor)
        self.size = opened.st_size
        self.begun: tuple[int, int] | None = (opened.st_ino, opened.st_size)
        """Inode and offset where this run's output begins; None once that file is gone, for its inode may be reused."""

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, data: bytes) -> None:
        """Append, rotating between lines where that is possible. A full disk loses output, never the unit."""
        try:
            if self.lost_bytes:
                notice = f"shim: {self.lost_bytes} bytes of output could not be written\n".encode()
                self._append(notice)
                self.lost_bytes = 0
            self._append(data)
        except OSError:
            self.lost_bytes += len(data)

    def _append(self, data: bytes) -> None:
        while data:
            room = max(0, self.max_bytes - self.size)
            cut = len(data) if len(data) <= room else data.rfind(b"\n", 0, room) + 1
            if not cut and self.size == 0:
                cut = room  # one line longer than the cap
            piece, data = data[:cut], data[cut:]
            while piece:
                written = os.write(self.descriptor, piece)
                self.size += written
                piece = piece[written:]
            if data:
                self._rotate()

    def _rotate(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # it was moved by a try that could not open the next one
            if self.begun and self.begun[0] != self.path.stat().st_ino:
                self.begun = None
            self.path.replace(self.path.with_name("log.1"))
        full, self.descriptor = self.descriptor, self._open()
        os.close(full)
        self.size = 0


def last_lines(descriptor: int, lines: int, limit: int | None = None, begin: int = 0) -> bytes:
    """Return the last lines of an open file from `begin` on, or of its last `limit` bytes, reading from the end."""
    if lines <= 0:
        return b""
    end = os.fstat(descriptor).st_size
    lowest = begin if limit is None else max(begin, end - limit)
    blocks: list[bytes] = []
    newlines = 0
    while end > lowest and newlines <= lines:
        at = max(lowest, end - 64 * 1024)
        blocks.insert(0, os.pread(descriptor, end - at, at))
        newlines += blocks[0].count(b"\n")
        end = at
    parts = b"".join(blocks).split(b"\n")
    return b"\n".join(parts[-(lines + (not parts[-1])) :])


def open_logs(path: Path) -> list[int]:
    """Open `log.1` and `log`, oldest first; each only if it is there and is a file.

    `log` is opened first: if the two are the same file it was rotated in between, and what came before it is gone.
    """
    found: list[int] = []
    for each in (path, path.with_name("log.1")):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(each, os.O_RDONLY | os.O_NONBLOCK)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                found.insert(0, descriptor)
            else:
                os.close(descriptor)
    if len(found) == 2 and os.path.sameopenfile(*found):
        os.close(found.pop(0))
    return found


def log_start(record: Json | None) -> tuple[int | None, int]:
    """Return the inode of the log in which a run's output begins, and where in it; (None, 0) where nobody knows."""
    found: Any = (record or {}).get("log_from")
    is_whole = isinstance(found, list) and len(found) == 2 and all(isinstance(number, int) for number in found)
    return (found[0], max(0, found[1])) if is_whole else (None, 0)


def tail(path: Path, lines: int, limit: int | None = None, run: Json | None = None) -> tuple[bytes, int | None, int]:
    """Return the last lines across the rotation, and the newest file with the offset to go on from.

    With the record of a `run` nothing that was written before it.
    """
    data, newest, offset = b"", None, 0
    inode, begin = log_start(run)
    has_start = False
    for descriptor in reversed(open_logs(path)):
        if newest is None:
            newest, offset = descriptor, os.fstat(descriptor).st_size
        if not has_start:
            has_start = os.fstat(descriptor).st_ino == inode
            data = last_lines(descriptor, lines - data.count(b"\n"), limit, begin if has_start else 0) + data
        if descriptor != newest:
            os.close(descriptor)
    return data, newest, offset


def print_bytes(data: bytes) -> None:
    """Write to stdout without a buffer, so that a follower sees it at once."""
    while data:
        data = data[os.write(1, data) :]


def logs(request: Json) -> None:
    """Print the last `lines` lines; with `follow` go on until the unit is dead or stdin or stdout is closed.

    With `this_run` none of them is of an earlier run.
    A follower that falls behind by more than two rotations misses what was rotated away.
    """
    unit = unit_of(request)
    if not unit.directory.is_dir():
        raise RefusedError("no_such_unit", f"{unit.stack}/{unit.unit} has never been started on this node")
    run = read_record(unit.directory) if field(request, "this_run", bool, False) else None
    data, descriptor, offset = tail(unit.log, field(request, "lines", int, 100), run=run)
    print_bytes(data)
    if field(request, "follow", bool, False):
        follow(unit, descriptor, offset)


def follow(unit: Unit, descriptor: int | None, offset: int) -> None:
    """Copy to stdout what is appended, across rotations."""
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(1, 0)
    while True:
        with gate(unit.state):
            alive = is_held(unit.lock)  # asked before reading: what the unit wrote before it died is still copied
        following = next_log(unit.log, descriptor)
        if descriptor is not None:
            while block := os.pread(descriptor, 64 * 1024, offset):
                print_bytes(block)
                offset += len(block)
        if following is not None:
            if descriptor is not None:
                os.close(descriptor)
            descriptor, offset = following, 0
            continue
        if not alive:
            return
        for ready, _ in poller.poll(100):
            if ready == 1 or not os.read(0, 64 * 1024):
                return


def next_log(path: Path, descriptor: int | None) -> int | None:
    """Open the file that follows `descriptor`, or return None while it is still the newest."""
    found = open_logs(path)
    same = [descriptor is not None and os.path.sameopenfile(descriptor, each) for each in found]
    index = same.index(True) + 1 if True in same else 0
    for position, each in enumerate(found):
        if position != index:
            os.close(each)
    return found[index] if index < len(found) else None


# ---------------------------------------------------------------------------------------------------------------------
# start: the caller, the supervisor it forks away, the child
# ---------------------------------------------------------------------------------------------------------------------


class Launch(NamedTuple):
    """What to run, as bytes for exec. The environment lives in memory only: in no file and on no command line."""

    argv: list[bytes]
    environment: dict[bytes, bytes]
    cwd: bytes
    grace_s: float
    stopped_s: float
    """How long it may stand still (SIGSTOP) before it is killed; infinity lets it stand for ever."""


class Run(NamedTuple):
    """One life of a unit, as its supervisor knows it."""

    unit: Unit
    launch: Launch
    record: Json
    log: Log
    lock: int

    def save(self, **changes: Any) -> None:
        """Write what has changed to the record."""
        self.record.update(changes)
        write_record(self.unit.directory, self.record)


def launch_of(request: Json) -> Launch:
    """Return the program that a start request describes."""
    argv = [encoded(word, "argv") for word in field(request, "argv", list)]
    if not argv or not argv[0]:
        raise RefusedError("bad_request", "argv: expected a program")
    additions = {encoded(key, "env"): encoded(value, "env") for key, value in field(request, "env", dict, {}).items()}
    if any(not key or b"=" in key for key in additions):
        raise RefusedError("bad_request", "env: names must not be empty or contain '='")
    cwd = encoded(field(request, "cwd", str, "/"), "cwd")
    grace_s, stopped_s = field(request, "grace_s", float, 10.0), field(request, "stopped_s", float, 0.0)
    return Launch(argv, {**os.environb, **additions}, cwd, grace_s, stopped_s or float("inf"))


def start(request: Json) -> Json:
    """Start a unit; answer when its program has been exec'd, or with the reason why not."""
    unit, launch = unit_of(request), launch_of(request)
    labels = field(request, "labels", dict, {})
    max_bytes = field(request, "log_max_bytes", int, 16 * 1024 * 1024)
    if max_bytes < 1 or not all(isinstance(value, str) for value in labels.values()):
        raise RefusedError("bad_request", "expected labels of strings and a positive log_max_bytes")
    with gate(unit.state):
        unit.directory.mkdir(parents=True, exist_ok=True)
        lock = take(unit.lock, create=True)
    if lock is None:
        raise RefusedError("already_running", f"{unit.stack}/{unit.unit} is already running")
    before = read_record(unit.directory)
    end_group(before, launch.grace_s)  # orphans of a run whose supervisor and leader were killed
    with gate(unit.state):
        if (end := end_of(unit, before)) is not None and end not in (ends := read_ends(unit))[-1:]:
            write_ends(unit, [*ends, end])  # once, however often a start fails before the record is written
    run = Run(unit, launch, {"version": VERSION, **dict.fromkeys(RECORD_TYPES)}, Log(unit.log, max_bytes), lock)
    run.save(
        launch=os.urandom(8).hex(),
        phase="starting",
        boot_id=boot_id(),
        argv=request["argv"],
        labels=labels,
        started_at=time.time(),
        log_from=run.log.begun,
    )
    answer_in, answer_out = os.pipe()
    middle = os.fork()
    if middle == 0:
        detach(run, answer_out)
    os.close(answer_out)
    os.close(lock)
    os.waitpid(middle, 0)
    with open(answer_in, "rb") as stream:  # noqa: PTH123 - a descriptor, not a path
        answer = stream.read()
    if not answer:
        raise RefusedError("start_failed", f"the supervisor of {unit.stack}/{unit.unit} died before it could answer")
    outcome: Json = json.loads(answer)
    if "code" in outcome:
        raise RefusedError(**outcome)
    return outcome


def detach(run: Run, answer: int) -> NoReturn:
    """Become, by a second fork in a new session, the unit's supervisor; nothing of the caller's stays open."""
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        keep = {0, 1, 2, run.lock, answer, run.log.descriptor}
        for descriptor in {int(entry.name) for entry in Path("/dev/fd").iterdir()} - keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        os.chdir("/")
        supervise(run, answer)
        code = 0
    except BaseException as error:
        run.log.write(f"shim: the supervisor failed: {error!r}\n".encode("utf-8", "replace"))
        raise
    finally:
        os._exit(code)


def supervise(run: Run, answer: int) -> None:
    """Run the child, keep its log, record its exit."""

    def tell(outcome: Json) -> None:
        with contextlib.suppress(OSError):  # the caller may be gone; the unit is not
            os.write(answer, json.dumps(outcome).encode())
        os.close(answer)

    signals_in = watch_signals()
    child, output, failure = spawn(run.launch, run.lock)
    if failure:
        run.log.write(f"shim: {failure['message']}\n".encode("utf-8", "surrogateescape"))
        run.save(phase="exited", exited_at=time.time(), exit_code=127 if failure["errno"] == errno.ENOENT else 126)
        os.close(run.lock)  # before the answer: the caller may start it again at once
        tell(failure)
        return
    table = processes()
    me, leader = table[os.getpid()], table.get(child)
    # A leader that is over already gets "", which equals no start time.
    run.record.update(pid=child, sid=me.sid, started=leader.started if leader else "")
    try:
        run.save(phase="running", shim_pid=me.pid, shim_started=me.started)
    except OSError as error:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(run.lock)
        tell({"code": code_of(error), "message": f"the record cannot be written: {error}"})
        return
    tell({"pid": child})
    code = os.waitstatus_to_exitcode(tend(run, child, me.sid, output, signals_in))
    exit_code, exit_signal = (code, None) if code >= 0 else (None, -code)
    exited_at = time.time()
    if marked(run.unit, "asked") != run.record["launch"]:
        line = {"time": exited_at, "verb": "end", "stack": run.unit.stack, "unit": run.unit.unit, "actor": None}
        line.update(generation=None, outcome="died", answer={"exit_code": exit_code, "exit_signal": exit_signal})
        write_audit(run.unit.state, line)
    run.save(phase="exited", exited_at=exited_at, exit_code=exit_code, exit_signal=exit_signal)


def watch_signals() -> int:
    """Turn TERM and CHLD into bytes on a pipe, so that one loop waits for signals and output alike."""
    signals_in, signals_out = os.pipe()
    os.set_blocking(signals_in, False)
    os.set_blocking(signals_out, False)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(signals_out, warn_on_full_buffer=False)
    return signals_in


def spawn(launch: Launch, lock: int) -> tuple[int, int, Json | None]:
    """Fork and exec the child; return its pid, the pipe with its output, and why exec failed, if it did."""
    output_in, output_out = os.pipe()
    failure_in, failure_out = os.pipe()
    child = os.fork()
    if child == 0:
        become(launch, lock, output_out, failure_out)
    os.close(output_out)
    os.close(failure_out)
    with open(failure_in, "rb") as stream:  # noqa: PTH123 - a descriptor; it ends when exec closes the other end
        failure = stream.read()
    if failure:
        os.waitpid(child, 0)
    os.set_blocking(output_in, False)
    return child, output_in, json.loads(failure) if failure else None


def become(launch: Launch, lock: int, output: int, failure: int) -> NoReturn:
    """Turn a fresh fork into the unit's program, or say why that cannot be."""
    what = b"cannot prepare"
    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.set_inheritable(lock, True)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        what = b"cannot enter the directory " + launch.cwd
        os.chdir(launch.cwd)
        what = b"cannot run " + launch.argv[0]
        os.execvpe(launch.argv[0], launch.argv, launch.environment)  # noqa: S606 - an argument list, no shell
    except OSError as error:
        reason = f"{what.decode('utf-8', 'surrogateescape')}: {error.strerror}"
        os.write(failure, json.dumps({"code": "exec_failed", "message": reason, "errno": error.errno}).encode())
    finally:
        os._exit(127)


def tend(run: Run, child: int, sid: int, output: int, signals_in: int) -> int:
    """Copy output until the unit is over and return the leader's wait status. TERM, or the leader's exit, ends it.

    A leader that somebody has stopped (SIGSTOP) for longer than its launch allows is killed.
    """
    status: int | None = None
    ending, kill_at, stopped_until = False, float("inf"), float("inf")
    watched = [output, signals_in]
    while True:
        wait_s = None if stopped_until == float("inf") else max(0.0, stopped_until - time.monotonic())
        ready, _, _ = select.select(watched, (), (), POLL_S if ending else wait_s)
        if signals_in in ready and signal.SIGTERM in os.read(signals_in, 4096):
            ending = True
        if output in ready and not pump(output, run):
            watched.remove(output)
        while status is None:
            done, code = os.waitpid(child, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not done:
                break
            if os.WIFSTOPPED(code):
                stopped_until = time.monotonic() + run.launch.stopped_s
            elif os.WIFCONTINUED(code):
                stopped_until = float("inf")
            else:
                status = code
        if status is None and time.monotonic() >= stopped_until:
            run.log.write(f"shim: it was stopped for {run.launch.stopped_s:g} s, and is killed\n".encode())
            os.kill(child, signal.SIGKILL)
            stopped_until = float("inf")
        ending = ending or status is not None
        group = [p for p in processes().values() if p.pgid == child and p.sid == sid] if ending else []
        # Until it is reaped the pid is the leader's, even when it has moved to another group.
        others = [child] if status is None and child not in {p.pid for p in group} else []
        if status is not None and not group:
            break
        if ending and kill_at == float("inf"):
            send(signal.SIGTERM, group, others)
            kill_at = time.monotonic() + run.launch.grace_s
        elif time.monotonic() >= kill_at:
            send(signal.SIGKILL, group, others)
    drained = 0
    while output in watched and drained < DRAIN_BYTES and (count := pump(output, run)):
        drained += count
    return status


def pump(output: int, run: Run) -> int:
    """Copy what the child has written to the log and return how much that was: 0 at the end, or when there is none."""
    try:
        data = os.read(output, 64 * 1024)
    except BlockingIOError:
        return 0
    run.log.write(data)
    if run.log.begun is None and run.record["log_from"]:
        with contextlib.suppress(OSError):
            run.save(log_from=None)
    return len(data)


# ---------------------------------------------------------------------------------------------------------------------
# stop, gc
# ---------------------------------------------------------------------------------------------------------------------


def stop(request: Json) -> Json:
    """End a unit and everything in its group, and answer when its lock is free. Stopping a dead unit is no error."""
    unit, grace_s = unit_of(request), field(request, "grace_s", float, 10.0)
    first = read_record(unit.directory)
    begun = last_sent = time.monotonic()
    was_running = False
    while True:
        with gate(unit.state):
            try:
                lock = take(unit.lock, create=False)
            except (FileNotFoundError, NotADirectoryError):
                return {"was_running": was_running}
            record = read_record(unit.directory)
            if record and first and record["launch"] != first["launch"]:
                if lock is not None:
                    os.close(lock)
                return {"was_running": was_running}  # ours has ended; this is one that somebody started since
            if lock is not None:
                break
            now = time.monotonic()
            if now - begun > grace_s + GIVE_UP_S:
                raise RefusedError("stop_timeout", f"{unit.stack}/{unit.unit} survives KILL: it hangs in the kernel")
            # TERM once, KILL again and again: a group that is being killed may still be forking.
            if not was_running and record:
                mark(unit, "asked", record["launch"])
            if not was_running or (now - begun >= grace_s and now - last_sent >= 10 * POLL_S):
                strike(unit, record, now - begun - grace_s if was_running else None)
                was_running, last_sent = True, now
        first = first or record
        time.sleep(POLL_S)
    try:
        was_running = end_group(record, grace_s) or was_running
        # Its supervisor was killed, so nobody saw how it ended; what ended with an earlier boot stays lost.
        if record and record["phase"] != "exited" and record["boot_id"] == boot_id():
            with contextlib.suppress(OSError):  # it has ended; on a full disk it is listed as lost
                write_record(unit.directory, {**record, "phase": "exited", "exited_at": time.time()})
    finally:
        os.close(lock)
    return {"was_running": was_running}


def strike(unit: Unit, record: Json | None, overdue_s: float | None) -> None:
    """TERM a living unit, or KILL it when it is overdue; its supervisor is spared while it can record the exit."""
    number = signal.SIGTERM if overdue_s is None else signal.SIGKILL
    group = group_of(record)
    others = holders_of(unit.lock) - {process.pid for process in group}
    if overdue_s is None or overdue_s < SETTLE_S:
        others.discard(supervisor_of(record, processes()) or 0)
    send(number, group, others)


def gc(request: Json) -> Json:
    """Remove the directories of a stack's dead units that are not in `keep`; a living one is never touched."""
    state, stack = state_of(request), name(request, "stack")
    keep = set(items(request, "keep", str))
    root = state / "units" / stack
    removed: list[str] = []
    if root.is_symlink() or not root.is_dir():
        return {"removed": removed}
    for directory in sorted(root.iterdir()):
        if directory.name in keep or not NAME.fullmatch(directory.name) or directory.is_symlink():
            continue
        with gate(state):
            if not directory.is_dir() or is_held(directory / "lock") or group_of(read_record(directory)):
                continue  # alive, or with orphans that the next start or stop finds through the record
            # Renamed inside the gate: from here on a start finds no directory and makes its own.
            directory.rename(root / f".gone.{directory.name[:200]}.{os.getpid()}")
            removed.append(directory.name)
    import shutil

    for leftover in root.glob(".gone.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return {"removed": removed}


# ---------------------------------------------------------------------------------------------------------------------
# list, doctor
# ---------------------------------------------------------------------------------------------------------------------


def list_units(request: Json) -> Json:
    """Report units, asked ports that are taken, and the node. Torn or foreign records are reported, never fatal."""
    state = state_of(request)
    stack = name(request, "stack") if request.get("stack") is not None else None
    ports = set(items(request, "ports", int))
    table = processes()
    with gate(state):
        units = [report(unit, table) for unit in all_units(state)]
    owners = {unit["pid"]: unit for unit in units if unit["alive"] and unit["pid"] is not None}
    holders: dict[str, Json | None] = {str(port): None for port in sorted(ports)}
    for port, pid in sorted(listeners(ports), key=lambda item: (item[0], item[1] or 0)):
        pgid = table[pid].pgid if pid in table else None
        owner = owners.get(pgid) if pgid is not None else None
        if holders[str(port)] is None or owner is None:  # when several share a port, the stranger is the news
            holders[str(port)] = {
                "pid": pid,
                "pgid": pgid,
                "command": command_of(pid) if pid is not None else "",
                "stack": owner["stack"] if owner else None,
                "unit": owner["unit"] if owner else None,
            }
    wanted = [unit for unit in units if stack in {None, unit["stack"]}]
    return {"units": wanted, "ports": holders, "node": node_facts(state)}


def all_units(state: Path, stack: str | None = None) -> Iterator[Unit]:
    """Yield every unit directory, of one stack or of all, in the order of the names."""
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted((state / "units").iterdir()):
            if stack in {None, folder.name} and NAME.fullmatch(folder.name) and folder.is_dir():
                for directory in sorted(folder.iterdir()):
                    if NAME.fullmatch(directory.name) and directory.is_dir():
                        yield Unit(state, folder.name, directory.name)


def report(unit: Unit, table: dict[int, Process]) -> Json:
    """Describe one unit. Call it inside the gate."""
    alive = is_held(unit.lock)
    record = read_record(unit.directory)
    found: Json = {"stack": unit.stack, "unit": unit.unit, "alive": alive, "phase": "unreadable"}
    found.update(dict.fromkeys(("pid", "started_at", "exit_code", "exit_signal", "exited_at")), labels={})
    found["shim_alive"] = alive and supervisor_of(record, table) is not None
    if record is not None:
        found.update({key: record[key] for key in found.keys() & record.keys()})
        if not alive and record["phase"] != "exited":
            found["phase"] = "lost"  # supervisor and child are gone, and nobody could record how
    last = None if alive else end_of(unit, record)
    found["ends"] = (read_ends(unit) + ([last] if last else []))[-ENDS_KEPT:]
    if not alive:
        text, descriptor, _ = tail(unit.log, LOG_TAIL_LINES, LOG_TAIL_BYTES, record)
        found["log_tail"] = text.decode("utf-8", "replace")
        if descriptor is not None:
            os.close(descriptor)
    return found


def listeners(ports: set[int]) -> set[tuple[int, int | None]]:
    """Return (port, pid) of every listening TCP socket on `ports`; pid None where we may not see the process."""
    if not ports:
        return set()
    found: set[tuple[int, int | None]] = set()
    if not LINUX:
        pid: int | None = None
        for line in run_tool("lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-Fpn").splitlines():
            if line.startswith("p"):
                pid = int(line[1:])
            elif line.startswith("n") and line.rpartition(":")[2].isdigit():
                found.add((int(line.rpartition(":")[2]), pid))
        return {item for item in found if item[0] in ports}
    sockets: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == "0A" and port in ports:  # 0A: TCP_LISTEN in include/net/tcp_states.h
                    sockets[f"socket:[{fields[9]}]"] = port
    unseen = set(sockets)
    for each in pids() if sockets else ():
        for target in open_files(each):
            if target in sockets:
                found.add((sockets[target], each))
                unseen.discard(target)
    return found | {(sockets[target], None) for target in unseen}


def memory_bytes() -> tuple[int, int]:
    """Return total and available memory, 0 where the node does not say."""
    if LINUX:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
        return sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    total = run_tool("sysctl", "-n", "hw.memsize").strip()
    statistics = run_tool("vm_stat")
    pages = sum(int(count) for count in re.findall(r"Pages (?:free|inactive|speculative):\s+(\d+)", statistics))
    return int(total or 0), pages * os.sysconf("SC_PAGE_SIZE")


def node_facts(state: Path) -> Json:
    """Return what the planner has to know about this node."""
    system, (total, available), disk = os.uname(), memory_bytes(), os.statvfs(state)
    return {
        "os": "macos" if system.sysname == "Darwin" else system.sysname.lower(),
        "machine": system.machine,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "memory_total_bytes": total,
        "memory_available_bytes": available,
        "disk_free_bytes": disk.f_bavail * disk.f_frsize,
        "boot_id": boot_id(),
        "time": time.time(),
        "cpu_count": os.cpu_count() or 1,
    }


def doctor(request: Json) -> Json:
    """Check what supervision stands on: a state directory that can be written and locked."""
    state = state_of(request)
    probe = state / f".doctor.{os.getpid()}"
    try:
        first = take(probe, create=True)
        second = take(probe, create=True)  # NFS without a lock daemon grants both
        for descriptor in (first, second):
            if descriptor is not None:
                os.close(descriptor)
    finally:
        probe.unlink(missing_ok=True)
    return {
        "node": node_facts(state),
        "executable": sys.executable,
        "locks_work": first is not None and second is None,
    }


# ---------------------------------------------------------------------------------------------------------------------
# watch
# ---------------------------------------------------------------------------------------------------------------------


def watch(request: Json) -> None:
    """Print the living units of a stack, and again whenever they change, until stdin or stdout is closed.

    A line is `{"alive": {unit: launch}}`. What lives and dies between two looks, a quarter of a second apart, shows as
    another launch. A start holds the lock before its record is written: until then the record, if there is one, is of a
    run that has ended, and what was told of the unit still holds.
    """
    state, stack = state_of(request), name(request, "stack")
    poller = select.poll()
    poller.register(0, select.POLLIN)
    poller.register(1, 0)
    seen: Json | None = None
    launches: dict[str, tuple[float | None, str | None]] = {}
    while True:
        alive: Json = {}
        with gate(state):
            for unit in all_units(state, stack):
                if is_held(unit.lock):
                    written, launch = launches.get(unit.unit, (None, None))
                    if written is None or written != mtime(unit.directory / "record.json"):
                        written = mtime(unit.directory / "record.json")
                        launch = living_launch(unit) if written is not None else None
                        launches[unit.unit] = (written, launch)
                    if launch is None and seen is not None:
                        launch = seen.get(unit.unit)
                    if launch is not None:
                        alive[unit.unit] = launch
        if alive != seen:
            seen = alive
            emit({"version": VERSION, "ok": True, "alive": alive})
        for ready, _ in poller.poll(int(1000 * WATCH_POLL_S)):
            if ready == 1 or not os.read(0, 64 * 1024):
                return


def living_launch(unit: Unit) -> str | None:
    """Return the launch that a unit's record names: "" when the record is not ours, None when that run has ended."""
    record = read_record(unit.directory)
    if record is None:
        return ""
    return record["launch"] if record["phase"] != "exited" else None


# ---------------------------------------------------------------------------------------------------------------------
# lock
# ---------------------------------------------------------------------------------------------------------------------


def hold_lock(request: Json) -> None:
    """Hold `locks/<name>` until stdin ends: it vanishes with its holder, and with the connection to it.

    A connection that is lost without a word does not end stdin for hours; with `silence_s` the holder has to write
    something more often than that.
    """
    state, path = state_of(request), state_of(request) / "locks" / name(request, "name")
    holder = json.dumps(field(request, "holder", dict, {})).encode()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with gate(state):  # so that whoever is refused reads this holder, not the one before
        lock = take(path, create=True)
        if lock is not None:
            os.ftruncate(lock, 0)
            os.pwrite(lock, holder, 0)
    if lock is None:
        other: Any = None
        with contextlib.suppress(OSError, ValueError):
            other = json.loads(path.read_bytes())
        raise RefusedError("locked", f"{path.name} is locked", holder=other if isinstance(other, dict) else {})
    emit({"version": VERSION, "ok": True, "locked": True})
    silence_s = field(request, "silence_s", float, 0.0) or None
    while select.select([0], (), (), silence_s)[0] and os.read(0, 64 * 1024):
        pass
    os.close(lock)


# ---------------------------------------------------------------------------------------------------------------------
# Program
# ---------------------------------------------------------------------------------------------------------------------

VERBS: dict[str, Callable[[Json], Json | None]] = {
    "start": start,
    "stop": stop,
    "list": list_units,
    "logs": logs,
    "watch": watch,
    "lock": hold_lock,
    "gc": gc,
    "forgive": forgive,
    "audit": audit,
    "doctor": doctor,
}


def emit(answer: Json) -> None:
    """Print an answer as one line."""
    print_bytes(json.dumps(answer).encode() + b"\n")


def code_of(error: OSError) -> str:
    """Return the code of what the system refused."""
    return "disk_full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "os_error"


def verb_of(arguments: list[str]) -> str:
    """Return which verb to run, if this Python can; the file parses on much older ones too, to be able to say so."""
    if sys.version_info < LOWEST_PYTHON:
        needed = ".".join(str(part) for part in LOWEST_PYTHON)
        message = f"{sys.executable} is Python {sys.version.split()[0]}; install {needed} or newer on this node"
        raise RefusedError("python_too_old", message)
    if len(arguments) != 1 or arguments[0] not in VERBS:
        raise RefusedError("bad_request", f"usage: shim.py {'|'.join(VERBS)}, with a JSON object on stdin")
    return arguments[0]


def perform(verb: str, request: Json) -> Json | None:
    """Run a verb, and record it where it changes something."""
    if verb not in AUDITED:
        return VERBS[verb](request)
    state_of(request)  # what names no state directory leaves no trace in one
    try:
        answer = VERBS[verb](request)
    except (RefusedError, OSError) as failure:
        code = failure.code if isinstance(failure, RefusedError) else code_of(failure)
        if code not in {"bad_request", "bad_name"}:
            audit_verb(verb, request, None, {"code": code})
        raise
    audit_verb(verb, request, answer, None)
    return answer


def main(arguments: list[str]) -> int:
    """Run one verb and return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        answer = perform(verb_of(arguments), read_request())
    except RefusedError as refusal:
        error = {"code": refusal.code, "message": str(refusal), **refusal.details}
    except OSError as failure:
        error = {"code": code_of(failure), "message": str(failure)}
    else:
        if answer is not None:
            emit({"version": VERSION, "ok": True, **answer})
        return 0
    emit({"version": VERSION, "ok": False, "error": error})
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

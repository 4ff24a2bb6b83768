"""Pure: why a worker ended, as exit codes and the words for them.

From 70 on a code speaks of the whole group: every rank that can still speak ends with the same one.
"""

from __future__ import annotations

OK = 0
FAILED = 1
"""It cannot serve: its model does not load, its port is taken, its generation died. The log says more."""
USAGE = 2
"""Its arguments or its environment are wrong."""
LOAD_STUCK = 3
"""A load on demand did not end; its thread cannot be ended without the process."""
RANK_LOST = 70
RANK_SILENT = 71
ROUND_STALLED = 72
GROUP_REFUSED = 73
GROUP_NOT_FORMED = 74
RANKS_DISAGREE = 75
RANK_FAILED = 76
CANNOT_SHARD = 77
CANARY_FAILED = 78

_WORDS = {
    LOAD_STUCK: "its model did not load in time",
    RANK_LOST: "a rank of its group was lost",
    RANK_SILENT: "a rank of its group sent no heartbeat",
    ROUND_STALLED: "its group made no progress",
    GROUP_REFUSED: "the ranks of its group differ in versions, code or weights",
    GROUP_NOT_FORMED: "its group did not form in time",
    RANKS_DISAGREE: "the ranks of its group computed different tokens",
    RANK_FAILED: "a rank of its group failed",
    CANNOT_SHARD: "its model cannot be spread like that",
    CANARY_FAILED: "its group answered otherwise than one process does",
}
_SIGNAL_WORDS = {"SIGALRM": "the collectives of its group did not connect in time"}


def exit_words(code: int) -> str | None:
    """Return why a worker ended with `code`; None for codes that say nothing of their own."""
    return _WORDS.get(code)


def signal_words(name: str) -> str | None:
    """Return why a worker was ended by a signal (`SIGALRM`); None for signals that say nothing of their own.

    `mx.distributed.init` keeps the interpreter's lock while it connects: only a signal bounds it.
    """
    return _SIGNAL_WORDS.get(name)

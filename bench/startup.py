"""I/O: how long the program's own commands take: `--help`, and a `plan` without changes.

`--check` only measures `--help` and fails above its limit, for CI: by processor time, which other programs' work does
not lengthen, and on a slow machine beside what an interpreter that does nothing takes there.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(sys.executable).parent / "orchestrate"
HELP_LIMIT_MS = 150.0
"""What the architecture promises for `orchestrate --help`."""
HELP_LIMIT_BARE = 4.0
"""How many times as long as an interpreter that does nothing `--help` may take where that is more; it was 2.6."""
ROUNDS = 9


def median_ms(*arguments: str, rounds: int = ROUNDS) -> float:
    """Return the median wall time of a command, in milliseconds, after one run to warm the file cache."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run([PROGRAM, *arguments], check=True, capture_output=True)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[1:])


def least_work_ms(*argv: str | Path, rounds: int = ROUNDS) -> float:
    """Return the processor time that the quickest of some runs of a command took, in milliseconds."""

    def work_ms() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return 1000 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

    return min(work_ms() for _ in range(rounds))


def help_is_too_slow() -> str | None:
    """Say by how much `--help` is above its limit; None where it is not."""
    took_ms, bare_ms = least_work_ms(PROGRAM, "--help"), least_work_ms(sys.executable, "-c", "pass")
    limit_ms = max(HELP_LIMIT_MS, HELP_LIMIT_BARE * bare_ms)
    if took_ms <= limit_ms:
        return None
    return f"--help takes {took_ms:.0f} ms of processor time, more than {limit_ms:.0f} ms"


def main(argv: list[str] | None = None) -> int:
    """Print the medians; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup")
    parser.add_argument("--check", action="store_true", help="fail when --help takes too long")
    parser.add_argument("--stack", help="a running stack without pending changes: measure its plan too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    figures = {"help_ms": median_ms("--help")}
    if options.stack:
        figures["plan_ms"] = median_ms("plan", options.stack)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name.removesuffix('_ms'):<6} {value:7.0f} ms")
    reason = help_is_too_slow() if options.check else None
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

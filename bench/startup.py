"""I/O: how long the program's own commands take: `--help`, and a `plan` without changes.

`--check` only measures `--help` and fails above its limit, for CI.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(sys.executable).parent / "orchestrate"
HELP_LIMIT_MS = 150.0
"""What the architecture promises for `orchestrate --help`."""
ROUNDS = 9


def median_ms(*arguments: str, rounds: int = ROUNDS) -> float:
    """Return the median wall time of a command, in milliseconds, after one run to warm the file cache."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run([PROGRAM, *arguments], check=True, capture_output=True)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[1:])


def main(argv: list[str] | None = None) -> int:
    """Print the medians, beside that of an interpreter that does nothing; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup")
    parser.add_argument("--check", action="store_true", help=f"fail when --help takes more than {HELP_LIMIT_MS:g} ms")
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
    if options.check and figures["help_ms"] > HELP_LIMIT_MS:
        print(f"--help takes {figures['help_ms']:.0f} ms, more than {HELP_LIMIT_MS:g} ms", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

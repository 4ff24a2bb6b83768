"""I/O: one rank of a test of a group's links: dial, join, check, measure; prints one JSON object and ends.

It loads no model and speaks with no other process than its peers'. Its link file comes on stdin.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from runtime.worker.group.sharded import JoinError, join
from runtime.worker.settings import Group

DIAL_S = 30.0
"""For the peers to start Python and to listen; a machine that is busy takes seconds for it."""
ATTEMPT_S = 3.0
RETRY_S = 0.1
CHECKED = 1024
"""Numbers of the arrays whose sums are checked first: 4 KiB."""
LATENCY_ROUNDS = 200
LATENCY_NUMBERS = 1024
BANDWIDTH_ROUNDS = 20
BANDWIDTH_NUMBERS = 1024 * 1024
STRESS_NUMBERS = (1, 7, 1024, 4099, 65536, 262144)


class DialError(Exception):
    """A peer did not answer, or did not call."""

    def __init__(self, stage: str, address: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage
        self.address = address
        self.reason = reason


def dial(listen: str | None, callers: int, call: str | None, within_s: float = DIAL_S) -> None:
    """Wait until we have reached the peer at `call`, and `callers` peers us at `listen`; both are `ip:port`.

    The ports are others than those of the collectives, which nothing but MLX may touch. Raises DialError.
    """
    end = time.monotonic() + within_s
    listener = None
    try:
        if listen is not None:
            try:
                listener = socket.create_server(_parsed(listen))
            except OSError as error:
                raise DialError("bind", listen, _words(error)) from error
        if call is not None:
            _call(call, end)
        if listen is not None and listener is not None:
            try:
                for _ in range(callers):
                    listener.settimeout(max(0.1, end - time.monotonic()) + ATTEMPT_S)
                    listener.accept()[0].close()
            except OSError as error:
                raise DialError("accept", listen, "nobody connected") from error
    finally:
        if listener is not None:
            listener.close()


def _call(address: str, end: float) -> None:
    while True:
        try:
            socket.create_connection(_parsed(address), timeout=ATTEMPT_S).close()
        except OSError as error:
            if time.monotonic() > end:
                raise DialError("connect", address, _words(error)) from error
            time.sleep(RETRY_S)
        else:
            return


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _words(error: OSError) -> str:
    return "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()


class Links:
    """The collectives of one joined group, whose every sum is checked."""

    def __init__(self, joined: Any) -> None:
        self._joined = joined
        self._rank: int = joined.rank()
        self._size: int = joined.size()
        self.wrong = 0
        """Results that were not the sum of what the ranks had sent."""

    def round(self, numbers: int, *, flag: bool = False) -> tuple[float, bool]:
        """Add up `numbers` numbers of every rank; return the seconds that it took, and whether rank 0 set the flag.

        The sums are whole numbers below 2**24, so float32 has them exactly, in whatever order they are added.
        """
        plain = mx.arange(numbers, dtype=mx.float32) % 1021
        mine = plain + self._rank
        first = mx.array([1.0 if flag and self._rank == 0 else 0.0])
        sent = mx.concatenate([first, mine])
        mx.eval(sent)
        begin = time.perf_counter()
        summed: Any = mx.distributed.all_sum(sent, group=self._joined)
        mx.eval(summed)
        took = time.perf_counter() - begin
        expected = plain * self._size + self._size * (self._size - 1) // 2
        if not mx.array_equal(summed[1:], expected).item():
            self.wrong += 1
        return took, bool(summed[0].item() == 1.0)

    def times(self, numbers: int, rounds: int) -> list[float]:
        """Return the sorted seconds of `rounds` rounds, after a few that are not counted."""
        for _ in range(3):
            self.round(numbers)
        return sorted(self.round(numbers)[0] for _ in range(rounds))

    def stress(self, seconds: float) -> tuple[int, float]:
        """Add up arrays of mixed sizes; return how many rounds there were and the seconds of the slowest.

        Rank 0 says in a sum when it is over, so that all ranks end behind the same round.
        """
        begin, worst, rounds, is_over = time.monotonic(), 0.0, 0, False
        while not is_over:
            over = time.monotonic() - begin >= seconds
            took, is_over = self.round(STRESS_NUMBERS[rounds % len(STRESS_NUMBERS)], flag=over)
            worst, rounds = max(worst, took), rounds + 1
        return rounds, worst


def measure(joined: Any, seconds: float) -> dict[str, Any]:
    """Return what one rank has seen of its links, in milliseconds and 10**9 bytes a second."""
    links = Links(joined)
    links.round(CHECKED)
    latency = links.times(LATENCY_NUMBERS - 1, LATENCY_ROUNDS)
    bandwidth = links.times(BANDWIDTH_NUMBERS - 1, BANDWIDTH_ROUNDS)
    rounds, worst = links.stress(seconds)
    return {
        "latency_ms": latency[len(latency) // 2] * 1e3,
        "latency_p99_ms": latency[len(latency) * 99 // 100] * 1e3,
        "gigabytes_per_s": BANDWIDTH_NUMBERS * 4 / bandwidth[len(bandwidth) // 2] / 1e9,
        "stress_rounds": rounds,
        "stress_worst_ms": worst * 1e3,
        "wrong": links.wrong,
    }


def main(argv: list[str] | None = None) -> int:
    """Test the links of one rank; 0 where it could measure them, also if it got wrong sums."""
    parser = argparse.ArgumentParser(prog="python -m runtime.worker.link")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--backend", choices=("ring", "jaccl", "nccl"), required=True)
    parser.add_argument("--launch", required=True)
    parser.add_argument("--listen")
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--call")
    parser.add_argument("--file-variable")
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args(argv)
    group = Group(options.rank, options.size, options.backend, "tensor", None, "", options.launch, "", ())
    try:
        dial(options.listen, options.callers, options.call)
        found = _joined_and_measured(group, options.file_variable, sys.stdin.read(), options.seconds)
    except DialError as error:
        found = {"stage": error.stage, "address": error.address, "reason": error.reason}
    except JoinError as error:
        found = {"stage": "join", "reason": str(error)}
    except RuntimeError as error:  # what mlx raises for a connection that is lost
        found = {"stage": "run", "reason": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")
    return 1 if "stage" in found else 0


def _joined_and_measured(group: Group, variable: str | None, text: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="orchestrate-links-") as directory:
        if variable is not None:
            path = Path(directory) / "links.json"
            path.write_text(text)
            os.environ[variable] = str(path)
        joined = join(group)
    return measure(joined, seconds)


if __name__ == "__main__":
    sys.exit(main())

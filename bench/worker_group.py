"""I/O: `python -m bench.worker_group --model-dir DIR`: what a group of ranks costs while idle, and how it tells a loss.

The worker and stock `mlx_lm.server` each run as three ranks over a ring on loopback. Idle: the CPU time of all their
processes. Loss: a client streams, a rank above 0 is killed (SIGKILL) or stopped (SIGSTOP); what counts is the time to
an error that the client can see. Where none comes within the wait, that is the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.servers import Server, start_stock, start_worker

SETTLE_S = 8.0
"""What the start's work and the first heartbeats take to be over."""
Start = Callable[[Path, Path, int], Server]


@dataclass(frozen=True, slots=True)
class Told:
    """How a stream ended, seconds after the rank was lost."""

    seconds: float
    how: str


async def _lose(server: Server, number: signal.Signals, wait_s: float) -> Told:
    """Stream, lose the last rank, and watch the stream."""
    body = {"model": server.model, "prompt": "Once upon a time", "max_tokens": 4000, "temperature": 1, "stream": True}
    lost_at = last_at = 0.0
    error, is_done, seen = False, False, 0
    limits = httpx.Timeout(wait_s)
    try:
        async with (
            asyncio.timeout(None) as limit,
            httpx.AsyncClient(timeout=limits) as client,
            client.stream("POST", f"{server.url}/v1/completions", json=body) as response,
        ):
            async for line in response.aiter_lines():
                last_at = time.perf_counter()
                is_done |= line == "data: [DONE]"
                error |= line.startswith("data: {") and "error" in json.loads(line.removeprefix("data: "))
                seen += line.startswith("data: ")
                if seen > 4 and not lost_at:
                    server.processes[-1].send_signal(number)
                    lost_at = time.perf_counter()
                    limit.reschedule(asyncio.get_running_loop().time() + wait_s)
    except TimeoutError:
        return Told(wait_s, "nothing at all until the wait was over")
    except httpx.TimeoutException:
        return Told(wait_s, "nothing at all until the wait was over")
    except httpx.TransportError as broken:
        return Told(time.perf_counter() - lost_at, f"the connection broke ({type(broken).__name__})")
    if not lost_at:
        return Told(0.0, "the stream ended before a rank was lost")
    how = "an error event" if error else "a finished answer" if is_done else "a stream that just ended, no error"
    return Told((last_at if error else time.perf_counter()) - lost_at, how)


def _idle_share(server: Server, seconds: float) -> float:
    """Return the share of one core that all ranks together use while nobody asks."""
    time.sleep(SETTLE_S)
    before, begun = server.spent_s(), time.perf_counter()
    time.sleep(seconds)
    return (server.spent_s() - before) / (time.perf_counter() - begun)


def _worker(model_dir: Path, place: Path, ranks: int) -> Server:
    return start_worker(model_dir, place, ranks)


def measure_idle(model_dir: Path, ranks: int, seconds: float) -> None:
    """Print what idle groups cost."""
    shares = []
    for start in (_worker, start_stock):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            server = start(model_dir, Path(folder), ranks)
            stack.callback(server.stop)
            shares.append(_idle_share(server, seconds))
    ours, theirs = shares
    print(f"idle, {ranks} ranks: worker {ours:.2%} of a core, mlx_lm.server {theirs:.2%}, ratio {ours / theirs:.5f}")


def measure_losses(model_dir: Path, ranks: int, wait_s: float) -> None:
    """Print how long clients wait for the news of a lost rank."""
    for number in (signal.SIGKILL, signal.SIGSTOP):
        for start in (_worker, start_stock):
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                server = start(model_dir, Path(folder), ranks)
                stack.callback(server.stop)
                told = asyncio.run(_lose(server, number, wait_s))
                print(
                    f"{number.name} of rank {ranks - 1} in mid-stream, {server.name}: {told.seconds:.2f} s, {told.how}"
                )


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker_group", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model-dir", type=Path, required=True, help="an MLX model directory that divides by the ranks"
    )
    parser.add_argument("--ranks", type=int, default=3, help="processes of a group (default 3)")
    parser.add_argument("--idle-s", type=float, default=30.0, help="how long an idle group is watched (default 30)")
    parser.add_argument("--wait-s", type=float, default=120.0, help="what a client waits at most (default 120)")
    parser.add_argument("--quick", action="store_true", help="short waits: shows that it works, no figures")
    options = parser.parse_args(argv)
    if not Path("/proc/self/stat").exists():
        print("not measured: the CPU time of processes is read from /proc")
        return 0
    idle_s, wait_s = (5.0, 30.0) if options.quick else (options.idle_s, options.wait_s)
    measure_idle(options.model_dir.resolve(), options.ranks, idle_s)
    measure_losses(options.model_dir.resolve(), options.ranks, wait_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())

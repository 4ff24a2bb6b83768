"""I/O: tokens/s of the worker against stock `mlx_lm.server`, same model: `python -m bench.worker --model-dir DIR`.

Both servers are up and warm; they take turns, one at work at a time, so a machine that slows down slows both. A run is
`--tokens` greedy tokens for each stream. Neighbouring prompts differ from their first token on, so stock's cache of the
last ten prompts, which the worker does not have, saves none of them: both compute the same.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import socket
import statistics
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

READY_S = 120.0
RUN_S = 600.0
_FIRST_LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and what it calls the model."""

    name: str
    url: str
    model: str
    first_letters: Iterator[str]
    """Begin the prompts, in turn."""


@dataclass(frozen=True, slots=True)
class Result:
    """Tokens/s of every run of both servers with one number of streams."""

    streams: int
    worker: list[float]
    stock: list[float]

    @property
    def ratio(self) -> float:
        """Return the median of worker / stock over the pairs of neighbouring runs."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.worker, self.stock, strict=True))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _start(stack: ExitStack, module: str, *arguments: str) -> str:
    """Start `python -m module` on a free port until the stack is closed; return its URL once it is healthy."""
    port = _free_port()
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(port), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    log = Path(os.devnull).open("wb")  # noqa: SIM115 - the stack closes it
    stack.callback(log.close)
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    stack.callback(_stop, process)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return url
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"{module} is not healthy after {READY_S:g} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _one(client: httpx.AsyncClient, server: Server, tokens: int) -> int:
    """Read one stream to its end; return the tokens that the server counted."""
    body = {
        "model": server.model,
        "prompt": f"{next(server.first_letters)}. Once upon a time, in a small village by the sea,",
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    counted = 0
    async with client.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if '"completion_tokens"' in line:
                counted = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    return counted


async def _run(server: Server, streams: int, tokens: int) -> float:
    """Run streams side by side; return tokens/s from the first request to the last end."""
    async with httpx.AsyncClient(timeout=RUN_S) as client:
        begun = time.perf_counter()
        counts = await asyncio.gather(*(_one(client, server, tokens) for _ in range(streams)))
        return sum(counts) / (time.perf_counter() - begun)


async def _measure(worker: Server, stock: Server, streams: int, tokens: int, rounds: int) -> Result:
    """Alternate the servers; the one that begins changes with every round."""
    rates: dict[str, list[float]] = {worker.name: [], stock.name: []}
    for turn in range(rounds):
        pair = (worker, stock) if turn % 2 == 0 else (stock, worker)
        for server in pair:
            rates[server.name].append(await _run(server, streams, tokens))
    return Result(streams, rates[worker.name], rates[stock.name])


async def _bench(model_dir: Path, streams: list[int], tokens: int, rounds: int) -> list[Result]:
    with ExitStack() as stack:
        url = _start(stack, "runtime.worker", "--model-dir", str(model_dir), "--name", "model")
        worker = Server("worker", url, "model", itertools.cycle(_FIRST_LETTERS))
        url = _start(stack, "mlx_lm.server", "--model", str(model_dir), "--log-level", "ERROR")
        stock = Server("mlx_lm.server", url, "default_model", itertools.cycle(_FIRST_LETTERS))
        await _wait_ready(worker)
        for server in (worker, stock):
            for count in streams:
                await _run(server, count, 4)
        return [await _measure(worker, stock, count, tokens, rounds) for count in streams]


async def _wait_ready(worker: Server) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(READY_S):
        while (await client.get(f"{worker.url}/ready")).status_code != 200:
            await asyncio.sleep(0.1)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description="The worker against mlx_lm.server.")
    parser.add_argument("--model-dir", type=Path, required=True, help="an MLX model directory")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8], help="numbers of streams (default 1 8)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each stream (default 48)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each server for each number of streams")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args(argv)
    model_dir = arguments.model_dir.resolve()
    results = asyncio.run(_bench(model_dir, arguments.streams, arguments.tokens, arguments.rounds))
    if arguments.json:
        rows = [
            {"streams": r.streams, "worker_tokens_per_s": r.worker, "stock_tokens_per_s": r.stock, "ratio": r.ratio}
            for r in results
        ]
        print(json.dumps({"tokens": arguments.tokens, "results": rows}))
        return 0
    print(f"{'streams':>7}  {'worker tok/s':>12}  {'mlx_lm.server tok/s':>19}  {'ratio':>5}")
    for result in results:
        ours, theirs = statistics.median(result.worker), statistics.median(result.stock)
        print(f"{result.streams:>7}  {ours:>12.2f}  {theirs:>19.2f}  {result.ratio:>5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

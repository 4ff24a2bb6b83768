"""I/O: tokens/s of the worker against stock `mlx_lm.server`, same model: `python -m bench.worker --model-dir DIR`.

Both servers are up and warm, alone or as a group of ranks over loopback; they take turns, one at work at a time, so a
machine that slows down slows both. A run is `--tokens` greedy tokens for each stream. Neighbouring prompts differ from
their first token on, so nobody's prompt cache saves anything: both compute the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.servers import RUN_S, STOCK, WORKER, Server, start_stock, start_worker, stream


@dataclass(frozen=True, slots=True)
class Result:
    """Tokens/s of every run of both servers with one number of ranks and streams."""

    ranks: int
    streams: int
    worker: list[float]
    stock: list[float]

    @property
    def ratio(self) -> float:
        """Return the median of worker / stock over the pairs of neighbouring runs."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.worker, self.stock, strict=True))


async def _one(client: httpx.AsyncClient, server: Server, tokens: int) -> int:
    """Read one stream to its end; return the tokens that the server counted."""
    prompt = f"{next(server.prefixes)}. Once upon a time, in a small village by the sea,"
    body = {"prompt": prompt, "max_tokens": tokens, "stream_options": {"include_usage": True}}
    counted = 0
    async for chunk in stream(client, server, "/v1/completions", body):
        if chunk.get("usage"):
            counted = chunk["usage"]["completion_tokens"]
    return counted


async def _run(server: Server, streams: int, tokens: int) -> float:
    """Run streams side by side; return tokens/s from the first request to the last end."""
    async with httpx.AsyncClient(timeout=RUN_S) as client:
        begun = time.perf_counter()
        counts = await asyncio.gather(*(_one(client, server, tokens) for _ in range(streams)))
        return sum(counts) / (time.perf_counter() - begun)


async def _measure(worker: Server, stock: Server, ranks: int, streams: int, tokens: int, rounds: int) -> Result:
    """Alternate the servers; the one that begins changes with every round."""
    rates: dict[str, list[float]] = {WORKER: [], STOCK: []}

    async def run(server: Server, tokens: int) -> float:
        # The worker's idle processes take nothing, stock's are kept from taking it.
        with stock.paused() if server is worker else contextlib.nullcontext():
            return await _run(server, streams, tokens)

    for server in (worker, stock):
        await run(server, 4)
    for turn in range(rounds):
        for server in (worker, stock) if turn % 2 == 0 else (stock, worker):
            rates[server.name].append(await run(server, tokens))
    return Result(ranks, streams, rates[WORKER], rates[STOCK])


def _bench(model_dir: Path, ranks: int, streams: list[int], tokens: int, rounds: int) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        worker = start_worker(model_dir, Path(folder), ranks)
        stack.callback(worker.stop)
        stock = start_stock(model_dir, Path(folder), ranks)
        stack.callback(stock.stop)
        return [asyncio.run(_measure(worker, stock, ranks, count, tokens, rounds)) for count in streams]


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description="The worker against mlx_lm.server.")
    parser.add_argument("--model-dir", type=Path, required=True, help="an MLX model directory")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 3], help="numbers of ranks (default 1 3)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8], help="numbers of streams (default 1 4 8)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each stream (default 48)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each server for each number of streams")
    parser.add_argument("--quick", action="store_true", help="one run of few tokens: shows that it works, no figures")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args(argv)
    tokens, rounds = (8, 1) if options.quick else (options.tokens, options.rounds)
    model_dir = options.model_dir.resolve()
    results = [r for ranks in options.ranks for r in _bench(model_dir, ranks, options.streams, tokens, rounds)]
    if options.json:
        rows = [
            {"ranks": r.ranks, "streams": r.streams, "worker_tokens_per_s": r.worker, "stock_tokens_per_s": r.stock,
             "ratio": r.ratio}
            for r in results
        ]  # fmt: skip
        print(json.dumps({"tokens": tokens, "results": rows}))
        return 0
    print(f"{'ranks':>5}  {'streams':>7}  {'worker tok/s':>12}  {'mlx_lm.server tok/s':>19}  {'ratio':>5}")
    for result in results:
        ours, theirs = statistics.median(result.worker), statistics.median(result.stock)
        print(f"{result.ranks:>5}  {result.streams:>7}  {ours:>12.2f}  {theirs:>19.2f}  {result.ratio:>5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

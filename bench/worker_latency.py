"""I/O: `python -m bench.worker_latency --model-dir DIR`: the first token, and what a JSON Schema costs each token.

The time to the first token is measured cold (a prompt nobody has seen) and warm (the same long beginning with another
end), against stock `mlx_lm.server` in the same run; both keep a prompt cache. Stock has no structured output, so the
schema's cost is the worker's time for a token with it against without it: short answers in pairs, one with and one
without, each pair in the other order than the one before it. What counts is the median over the pairs, since a schema's
cost is far below what a machine's speed changes by from one minute to the next.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.servers import RUN_S, STOCK, WORKER, Server, ratio_words, start_stock, start_worker, stream

WARM_RUNS = 6
"""Of each server, for every prefix."""
WORDS = ("the", "sea", "was", "calm", "and", "an", "old", "man", "went", "out", "in", "his", "boat", "for", "fish")
SCHEMA = {
    "type": "object",
    "properties": {"numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 400}},
    "required": ["numbers"],
    "additionalProperties": False,
}
"""Too long to be ended: every answer has all the tokens that it may have."""


def prefix(number: int, words: int) -> str:
    """Return a text of `words` words that differs from the others of other numbers from its first one on."""
    return " ".join(f"{number}" if at == 0 else WORDS[(at * (number + 3)) % len(WORDS)] for at in range(words))


@dataclass(frozen=True, slots=True)
class First:
    """What a first token took."""

    wall_s: float
    cpu_s: float
    """Of all the server's threads, until its first token came."""
    tokens: int
    """The prompt's length, as the server counts."""


async def _first_token(server: Server, prompt: str) -> First:
    body = {"prompt": prompt, "max_tokens": 2, "stream_options": {"include_usage": True}}
    wall_s, cpu_s, tokens = 0.0, 0.0, 0
    async with httpx.AsyncClient(timeout=RUN_S) as client:
        begun, spent = time.perf_counter(), server.spent_s()
        async for chunk in stream(client, server, "/v1/completions", body):
            if not wall_s and chunk["choices"]:
                wall_s, cpu_s = time.perf_counter() - begun, server.spent_s() - spent
            if chunk.get("usage"):
                tokens = chunk["usage"]["prompt_tokens"]
    return First(wall_s, cpu_s, tokens)


async def _measure_first(worker: Server, stock: Server, words: int, rounds: int) -> None:
    found: dict[tuple[str, str], list[First]] = {}
    for turn in range(rounds):
        shared = prefix(turn, words)
        for server in (worker, stock) if turn % 2 == 0 else (stock, worker):
            found.setdefault((server.name, "cold"), []).append(await _first_token(server, f"{shared}. Then"))
        # So short that a machine's own noise is as large: measured often, and in turns.
        for number in range(WARM_RUNS):
            for server in (worker, stock) if number % 2 == 0 else (stock, worker):
                first = await _first_token(server, f"{shared}. {number} days later")
                found.setdefault((server.name, "warm"), []).append(first)
    for kind in ("cold", "warm"):
        ours, theirs = found[WORKER, kind], found[STOCK, kind]
        wall, cpu = (
            ratio_words(*(statistics.median(getattr(each, part) for each in side) for side in (ours, theirs)), "s")
            for part in ("wall_s", "cpu_s")
        )
        print(f"first token of {ours[0].tokens} prompt tokens, {kind}: {wall}; CPU: {cpu} (smaller is better)")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one token behind the first took, in one chat."""

    wall_s: float
    """The median of the times between two tokens that came."""
    cpu_s: float
    """Of all the worker's threads."""


async def _token_cost(server: Server, tokens: int, more: dict[str, object]) -> Cost:
    body = {"messages": [{"role": "user", "content": "List some numbers."}], "max_tokens": tokens, **more}
    body["stream_options"] = {"include_usage": True}
    at: list[float] = []
    counted, spent = 0, 0.0
    async with httpx.AsyncClient(timeout=RUN_S) as client:
        async for chunk in stream(client, server, "/v1/chat/completions", body):
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                at.append(time.perf_counter())
                spent = spent or server.spent_s()
            if chunk.get("usage"):
                counted = chunk["usage"]["completion_tokens"]
    gaps = [after - before for before, after in itertools.pairwise(at)]
    return Cost(statistics.median(gaps), (server.spent_s() - spent) / max(1, counted - 1))


async def _measure_schema(worker: Server, tokens: int, pairs: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "numbers", "strict": True, "schema": SCHEMA}}
    # Prose that ends at once would be no comparison: nothing may end but by its length.
    endless: dict[str, object] = {"temperature": 1, "seed": 1}
    kinds = {"free": endless, "bound": {**endless, "response_format": wanted}}
    for more in kinds.values():
        await _token_cost(worker, 4, more)
    costs: dict[str, list[Cost]] = {"free": [], "bound": []}
    for turn in range(pairs):
        for kind in ("free", "bound") if turn % 2 == 0 else ("bound", "free"):
            costs[kind].append(await _token_cost(worker, tokens, kinds[kind]))
    wall = [(free.wall_s, bound.wall_s) for free, bound in zip(costs["free"], costs["bound"], strict=True)]
    cpu = [(free.cpu_s, bound.cpu_s) for free, bound in zip(costs["free"], costs["bound"], strict=True)]
    print(f"a token with a JSON Schema, median of {pairs} pairs of {tokens} tokens: {_over(wall)}; CPU {_over(cpu)}")


def _over(pairs: list[tuple[float, float]]) -> str:
    """Return what each second figure is above the first, in seconds, and how far the middle half of them spreads."""
    ratios = [bound / free for free, bound in pairs]
    above = statistics.median(bound - free for free, bound in pairs)
    free = statistics.median(free for free, _ in pairs)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return (
        f"{above * 1000:+.2f} ms on {free * 1000:.2f} ms, ratio {statistics.median(ratios):.3f} "
        f"(half of the pairs {low:.3f} to {high:.3f})"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker_latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--model-dir", type=Path, required=True, help="an MLX model directory")
    parser.add_argument("--words", type=int, default=500, help="words of the long prompt (default 500)")
    parser.add_argument("--rounds", type=int, default=3, help="long prompts (default 3)")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of an answer with a schema (default 24)")
    parser.add_argument("--pairs", type=int, default=11, help="answers with a schema and without (default 11)")
    parser.add_argument("--quick", action="store_true", help="short and once: shows that it works, no figures")
    options = parser.parse_args(argv)
    words, rounds = (40, 1) if options.quick else (options.words, options.rounds)
    tokens, pairs = (8, 2) if options.quick else (options.tokens, options.pairs)
    model_dir = options.model_dir.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        worker = start_worker(model_dir, Path(folder))
        stack.callback(worker.stop)
        stock = start_stock(model_dir, Path(folder))
        stack.callback(stock.stop)
        asyncio.run(_measure_first(worker, stock, words, rounds))
        asyncio.run(_measure_schema(worker, tokens, pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())

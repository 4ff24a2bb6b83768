"""I/O: `python -m bench.worker_latency --model-dir DIR`: the first token, and what a JSON Schema costs each token.

The time to the first token is measured cold (a prompt nobody has seen) and warm (the same long beginning with another
end), against stock `mlx_lm.server` in the same run; both keep a prompt cache. Stock has no structured output, so the
schema's cost is the worker's time for a token with it against without it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
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


async def _first_token_s(server: Server, prompt: str) -> tuple[float, int]:
    """Return the seconds to the first token, and the prompt's length in tokens as the server counts."""
    body = {"prompt": prompt, "max_tokens": 2, "stream_options": {"include_usage": True}}
    first, tokens = 0.0, 0
    async with httpx.AsyncClient(timeout=RUN_S) as client:
        begun = time.perf_counter()
        async for chunk in stream(client, server, "/v1/completions", body):
            if not first and chunk["choices"]:
                first = time.perf_counter() - begun
            if chunk.get("usage"):
                tokens = chunk["usage"]["prompt_tokens"]
    return first, tokens


async def _measure_first(worker: Server, stock: Server, words: int, rounds: int) -> None:
    times: dict[tuple[str, str], list[float]] = {}
    tokens = 0
    for turn in range(rounds):
        shared = prefix(turn, words)
        for server in (worker, stock) if turn % 2 == 0 else (stock, worker):
            seconds, tokens = await _first_token_s(server, f"{shared}. Then")
            times.setdefault((server.name, "cold"), []).append(seconds)
        # So short that a machine's own noise is as large: measured often, and in turns.
        for number in range(WARM_RUNS):
            for server in (worker, stock) if number % 2 == 0 else (stock, worker):
                seconds, tokens = await _first_token_s(server, f"{shared}. {number} days later")
                times.setdefault((server.name, "warm"), []).append(seconds)
    for kind in ("cold", "warm"):
        ours, theirs = (statistics.median(times[name, kind]) for name in (WORKER, STOCK))
        print(f"first token of {tokens} prompt tokens, {kind}: {ratio_words(ours, theirs, 's')} (smaller is better)")


async def _token_s(server: Server, tokens: int, more: dict[str, object]) -> float:
    """Return the seconds of one token behind the first, in one chat."""
    body = {"messages": [{"role": "user", "content": "List some numbers."}], "max_tokens": tokens, **more}
    body["stream_options"] = {"include_usage": True}
    first, last, counted = 0.0, 0.0, 0
    async with httpx.AsyncClient(timeout=RUN_S) as client:
        async for chunk in stream(client, server, "/v1/chat/completions", body):
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                last = time.perf_counter()
                first = first or last
            if chunk.get("usage"):
                counted = chunk["usage"]["completion_tokens"]
    return (last - first) / max(1, counted - 1)


async def _measure_schema(worker: Server, tokens: int, rounds: int) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "numbers", "strict": True, "schema": SCHEMA}}
    free, bound = [], []
    # Prose that ends at once would be no comparison: nothing may end but by its length.
    endless: dict[str, object] = {"temperature": 1, "seed": 1}
    for _ in range(rounds):
        free.append(await _token_s(worker, tokens, endless))
        bound.append(await _token_s(worker, tokens, {**endless, "response_format": wanted}))
    plain, with_schema = statistics.median(free), statistics.median(bound)
    print(
        f"a token with a JSON Schema: {with_schema * 1000:.2f} ms, without {plain * 1000:.2f} ms, "
        f"ratio {with_schema / plain:.3f}, overhead {(with_schema - plain) * 1000:.2f} ms"
    )


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.worker_latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--model-dir", type=Path, required=True, help="an MLX model directory")
    parser.add_argument("--words", type=int, default=500, help="words of the long prompt (default 500)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer with a schema (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--quick", action="store_true", help="short and once: shows that it works, no figures")
    options = parser.parse_args(argv)
    words, tokens, rounds = (40, 8, 1) if options.quick else (options.words, options.tokens, options.rounds)
    model_dir = options.model_dir.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        worker = start_worker(model_dir, Path(folder))
        stack.callback(worker.stop)
        stock = start_stock(model_dir, Path(folder))
        stack.callback(stock.stop)
        asyncio.run(_measure_first(worker, stock, words, rounds))
        asyncio.run(_measure_schema(worker, tokens, rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""I/O: `python -m bench.embeddings --model-dir DIR`: embeddings/s of 1,000 short texts, against sentence-transformers.

The worker is asked over HTTP in batches; sentence-transformers encodes the same texts in its own process, with the same
model, batch size and processors, in an environment of its own that is made on first use (about 1 GB). Where that
cannot be installed, only the worker is measured, and the reason is said.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.servers import RUN_S, Server, start_worker

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".cache" / "bench" / "sentence-transformers"
PACKAGES = ("torch==2.13.0", "sentence-transformers>=5,<6")
WORDS = ("red", "green", "slow", "river", "mountain", "garden", "letter", "music", "engine", "paper", "window")
# Reads {"model", "texts", "batch", "rounds"} and prints {"seconds": [...], "vectors": [first, last]}.
PROGRAM = """
import json, sys, time
from sentence_transformers import SentenceTransformer
asked = json.load(sys.stdin)
model = SentenceTransformer(asked["model"], device="cpu")
model.encode(asked["texts"][:64], batch_size=asked["batch"])
seconds = []
for _ in range(asked["rounds"]):
    begun = time.perf_counter()
    vectors = model.encode(asked["texts"], batch_size=asked["batch"], normalize_embeddings=True)
    seconds.append(time.perf_counter() - begun)
json.dump({"seconds": seconds, "vectors": [vectors[0].tolist(), vectors[-1].tolist()]}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Reference:
    """Seconds of every round of sentence-transformers, and its vectors of the first and the last text."""

    seconds: list[float]
    vectors: list[list[float]]


def texts(count: int) -> list[str]:
    """Return short texts of five to twenty words."""
    return [
        " ".join(WORDS[(number * 7 + at * at) % len(WORDS)] for at in range(5 + number % 16)) + f" {number}"
        for number in range(count)
    ]


def measure_worker(server: Server, wanted: list[str], batch: int, rounds: int) -> tuple[list[float], list[list[float]]]:
    """Return the seconds of every round, and the vectors of the first and the last text."""
    seconds, ends = [], []
    with httpx.Client(base_url=server.url, timeout=RUN_S) as client:

        def embed(part: list[str]) -> list[list[float]]:
            answer = client.post("/v1/embeddings", json={"model": server.model, "input": part, "truncate": True})
            answer.raise_for_status()
            return [item["embedding"] for item in answer.json()["data"]]

        embed(wanted[:64])
        for _ in range(rounds):
            begun = time.perf_counter()
            vectors = [vector for at in range(0, len(wanted), batch) for vector in embed(wanted[at : at + batch])]
            seconds.append(time.perf_counter() - begun)
            ends = [vectors[0], vectors[-1]]
    return seconds, ends


def prepare() -> str | None:
    """Make the other side's environment; return why that did not work."""
    python = PLACE / "bin" / "python"
    if not (PLACE / "ready").exists():
        venv.create(PLACE, with_pip=True, clear=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *PACKAGES], capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip said nothing"]
            return f"{' and '.join(PACKAGES)} cannot be installed: {lines[-1]}"
        (PLACE / "ready").touch()
    return None


def measure_reference(
    model_dir: Path, wanted: list[str], batch: int, rounds: int
) -> dict[str, list[list[float]]] | str:
    """Return what sentence-transformers took and computed, or why it did not."""
    if reason := prepare():
        return reason
    asked = {"model": str(model_dir), "texts": wanted, "batch": batch, "rounds": rounds}
    done = subprocess.run(
        [PLACE / "bin" / "python", "-c", PROGRAM], input=json.dumps(asked), capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        return f"it failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
    answer = json.loads(done.stdout)
    return Reference(answer["seconds"], answer["vectors"])


def cosine(ours: list[float], theirs: list[float]) -> float:
    """Return the cosine of two vectors."""
    dot = sum(a * b for a, b in zip(ours, theirs, strict=True))
    return dot / math.sqrt(sum(a * a for a in ours) * sum(b * b for b in theirs))


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.embeddings", description=__doc__.partition("\n")[0])
    parser.add_argument("--model-dir", type=Path, required=True, help="a directory of an embedding model")
    parser.add_argument("--texts", type=int, default=1000, help="how many texts (default 1000)")
    parser.add_argument("--batch", type=int, default=32, help="texts computed together (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--quick", action="store_true", help="few texts, once, the worker alone: shows that it works")
    options = parser.parse_args(argv)
    count, rounds = (64, 1) if options.quick else (options.texts, options.rounds)
    wanted, model_dir = texts(count), options.model_dir.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        arguments = ["--kind", "embedding", "--max-batch", str(options.batch)]
        server = start_worker(model_dir, Path(folder), 1, *arguments)
        stack.callback(server.stop)
        seconds, vectors = measure_worker(server, wanted, options.batch, rounds)
    ours = count / statistics.median(seconds)
    theirs = "--quick" if options.quick else measure_reference(model_dir, wanted, options.batch, rounds)
    if isinstance(theirs, str):
        print(f"{count} texts: worker {ours:.1f}/s; sentence-transformers was not measured: {theirs}")
        return 0
    rate = count / statistics.median(theirs.seconds)
    alike = min(cosine(a, b) for a, b in zip(vectors, theirs.vectors, strict=True))
    print(
        f"{count} texts: worker {ours:.1f}/s, sentence-transformers {rate:.1f}/s, ratio {ours / rate:.3f}; "
        f"cosine of their vectors at least {alike:.5f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

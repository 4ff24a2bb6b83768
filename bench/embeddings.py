"""I/O: `python -m bench.embeddings --model-dir DIR`: embeddings/s of 1,000 short texts, against sentence-transformers.

Both get all texts at once and take turns: the worker over HTTP, in the base64 that OpenAI's own client asks for, and
sentence-transformers in a process of its own, with the same model and processors, in the best of several batch sizes.
Its environment is made on first use (about 1 GB). Where that cannot be installed, only the worker is measured, and the
reason is said.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt

from bench.servers import RUN_S, Server, start_worker

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".cache" / "bench" / "sentence-transformers"
PACKAGES = ("torch==2.13.0", "sentence-transformers>=5,<6")
WORDS = ("red", "green", "slow", "river", "mountain", "garden", "letter", "music", "engine", "paper", "window")
BATCHES = (16, 32, 64, 128)
"""Sizes that sentence-transformers may choose from; 32 is its own default."""
# Reads the model and the texts, then batch sizes, a line each; prints what each took, and a file of the vectors.
PROGRAM = """
import json, sys, time
import numpy
from sentence_transformers import SentenceTransformer
asked = json.loads(sys.stdin.readline())
model = SentenceTransformer(asked["model"], device="cpu")
model.encode(asked["texts"][:64], batch_size=32)
print("ready", flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    vectors = model.encode(asked["texts"], batch_size=int(line), normalize_embeddings=True)
    seconds = time.perf_counter() - begun
    numpy.save(asked["vectors"], vectors)
    print(seconds, flush=True)
"""

Vectors = npt.NDArray[np.float32]


def texts(count: int) -> list[str]:
    """Return short texts of five to twenty words."""
    return [
        " ".join(WORDS[(number * 7 + at * at) % len(WORDS)] for at in range(5 + number % 16)) + f" {number}"
        for number in range(count)
    ]


def ask_worker(server: Server, wanted: list[str]) -> tuple[float, Vectors]:
    """Return the seconds from the request to the vectors, and these."""
    body = {"model": server.model, "input": wanted, "truncate": True, "encoding_format": "base64"}
    with httpx.Client(base_url=server.url, timeout=RUN_S) as client:
        begun = time.perf_counter()
        answer = client.post("/v1/embeddings", json=body)
        answer.raise_for_status()
        rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer.json()["data"]]
        return time.perf_counter() - begun, np.stack(rows)


@dataclass(slots=True)
class Peer:
    """sentence-transformers with a model and texts in memory."""

    process: subprocess.Popen[str]
    place: Path
    """Where it leaves its vectors."""

    def ask(self, batch: int) -> float:
        """Return the seconds that it took for all texts; raises RuntimeError."""
        return float(self._say(str(batch)))

    def vectors(self) -> Vectors:
        """Return what it computed last."""
        found: Vectors = np.load(self.place)
        return found

    def begin(self, model_dir: Path, wanted: list[str]) -> None:
        """Load; raises RuntimeError."""
        self._say(json.dumps({"model": str(model_dir), "texts": wanted, "vectors": str(self.place)}))

    def _say(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"it ended with code {self.process.wait()}")
        return answer


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


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Peer]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with (
        (folder / "peer.log").open("w") as log,
        subprocess.Popen(
            [PLACE / "bin" / "python", "-c", PROGRAM], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        ) as process,
    ):  # fmt: skip
        try:
            yield Peer(process, folder / "vectors.npy")
        finally:
            process.kill()


def _measure(server: Server, peer: Peer | None, wanted: list[str], rounds: int) -> None:
    ask_worker(server, wanted[:64])
    ours: list[float] = []
    theirs: dict[int, list[float]] = {}
    vectors = np.empty(0, np.float32)
    for _ in range(rounds):
        seconds, vectors = ask_worker(server, wanted)
        ours.append(seconds)
        for batch in BATCHES if peer is not None else ():
            assert peer is not None
            theirs.setdefault(batch, []).append(peer.ask(batch))
    rate = len(wanted) / statistics.median(ours)
    if peer is None:
        print(f"{len(wanted)} texts: worker {rate:.1f}/s")
        return
    rates = {batch: len(wanted) / statistics.median(seconds) for batch, seconds in theirs.items()}
    best = max(rates, key=lambda batch: rates[batch])
    alike = np.sum(vectors * peer.vectors(), axis=1).min()
    print(
        f"{len(wanted)} texts: worker {rate:.1f}/s, sentence-transformers {rates[best]:.1f}/s in batches of {best}, "
        f"ratio {rate / rates[best]:.3f}; cosine of their vectors at least {alike:.5f}"
    )
    print("  in batches of " + ", ".join(f"{batch}: {each:.1f}/s" for batch, each in rates.items()))


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.embeddings", description=__doc__.partition("\n")[0])
    parser.add_argument("--model-dir", type=Path, required=True, help="a directory of an embedding model")
    parser.add_argument("--texts", type=int, default=1000, help="how many texts (default 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--quick", action="store_true", help="few texts, once, the worker alone: shows that it works")
    options = parser.parse_args(argv)
    count, rounds = (64, 1) if options.quick else (options.texts, options.rounds)
    wanted, model_dir = texts(count), options.model_dir.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        server = start_worker(model_dir, Path(folder), 1, "--kind", "embedding")
        stack.callback(server.stop)
        reason = "--quick" if options.quick else prepare()
        peer: Peer | None = None
        if reason is None:
            peer = stack.enter_context(_opened(Path(folder)))
            try:
                peer.begin(model_dir, wanted)
            except RuntimeError as error:
                log = (Path(folder) / "peer.log").read_text().strip().splitlines() or ["no output"]
                reason, peer = f"{error}: {log[-1]}", None
        _measure(server, peer, wanted, rounds)
    if reason is not None:
        print(f"sentence-transformers was not measured: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

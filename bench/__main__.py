"""I/O: `python -m bench [--quick]`: every benchmark, one after the other, on the models of the quickstart stack.

With `--quick` those of the worker are short: they show that they work, their figures say little.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from bench import cluster, embeddings, plan_scale, startup, translation, worker, worker_group, worker_latency
from bench.gateway import __main__ as gateway
from orchestrator.directories import Directories
from orchestrator.models.sources import parse_source
from orchestrator.models.store import Store
from schemas.compose import compose

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"


def main() -> int:
    """Run all benchmarks and return 0, or the first code that says that one failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Every benchmark, one after the other.")
    parser.add_argument("--quick", action="store_true", help="measure the worker shortly")
    more = ["--quick"] if parser.parse_args().quick else []
    cache = Directories.from_environment(os.environ).cache
    model = compose(ROOT / "conf", "quickstart").stack.models[MODEL]
    source = parse_source(model.source)
    installed = Store(cache).install(
        source, model.revision, model.digest, progress=lambda _: None, cancel=threading.Event()
    )
    print("== planning for fleets of 10, 100 and 1,000 nodes")
    plan_scale.main()
    print("== the program: start-up and a plan without changes")
    code = _measure_startup(cache)
    print("== the worker against stock mlx_lm.server, same model")
    model_dir = ["--model-dir", str(installed.path), *more]
    code = code or worker.main(model_dir)
    print("== the worker's first token, and what a JSON Schema costs")
    code = code or worker_latency.main(model_dir)
    print("== a group of ranks: idle, and when it loses one")
    code = code or worker_group.main(model_dir)
    code = code or _measure_embeddings(cache, more)
    print("== the gateway beside other proxies that are installed")
    code = code or gateway.main([])
    print("== the protocols of others, against OpenAI's")
    code = code or translation.main([])
    return code or cluster.main([])


def _measure_embeddings(cache: Path, more: list[str]) -> int:
    """Measure the first embedding model of the quickstart stack; say so where it has none."""
    print("== embeddings of short texts, against sentence-transformers")
    models = compose(ROOT / "conf", "quickstart").stack.models.values()
    model = next((model for model in models if model.kind == "embedding"), None)
    if model is None:
        print("not measured: the quickstart stack has no embedding model")
        return 0
    installed = Store(cache).install(
        parse_source(model.source), model.revision, model.digest, progress=lambda _: None, cancel=threading.Event()
    )
    return embeddings.main(["--model-dir", str(installed.path), *more])


def _measure_startup(cache: Path) -> int:
    """Bring the quickstart stack up on free ports, measure commands on it, and stop it again."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(ROOT / "conf", root / "conf")
        stack = root / "conf" / "stacks" / "quickstart.yaml"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            stack.write_text(stack.read_text().replace("port: 8000", f"port: {probe.getsockname()[1]}"))
        state = root / "state"
        state.mkdir()
        (state / "cache").symlink_to(cache, target_is_directory=True)
        os.environ |= {"ORCHESTRATE_STATE": str(state), "ORCHESTRATE_CONF": str(root / "conf")}
        try:
            subprocess.run([startup.PROGRAM, "apply", "quickstart", "--yes"], check=True, capture_output=True)
            return startup.main(["--stack", "quickstart"])
        finally:
            subprocess.run([startup.PROGRAM, "down", "quickstart", "--yes"], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())

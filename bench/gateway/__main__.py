"""I/O: what the gateway costs, beside other proxies in front of the same mock endpoint.

`python -m bench.gateway [--install] [--seconds N] [--rounds N] [--only PEER ..] [--json]`. Everything runs on this
machine, the load generator too, and takes turns, so only the ratios and differences inside one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.gateway import ours
from bench.gateway.figures import ALONE, OURS, Case, Life, report, table
from bench.gateway.ours import ROOT
from bench.gateway.peers import PEERS, Front, Peer
from bench.gateway.processes import running
from bench.servers import free_ports

CASES: tuple[Case, ...] = tuple((kind, count) for kind in ("json", "stream") for count in (1, 32, 200))
PACED_STREAMS = 200
FIRST_ANSWER_S = 60.0
PEERS_FOLDER = ROOT / ".cache" / "bench" / "peers"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables or JSON, and return 0; 1 when a request through the gateway failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description="Measure what the gateway costs.")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case, alternated (default 3)")
    parser.add_argument("--peers", type=Path, default=PEERS_FOLDER, help="where other proxies are installed")
    parser.add_argument("--install", action="store_true", help="install the other proxies that are missing")
    parser.add_argument("--only", nargs="*", choices=[peer.name for peer in PEERS], help="these proxies; none without")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(argv)
    wanted = [peer for peer in PEERS if given.only is None or peer.name in given.only]
    if given.install:
        for peer in wanted:
            if peer.found(given.peers) is None and peer.installs:
                print(f"installs {peer.name} {peer.version}", file=sys.stderr)
                peer.install(given.peers)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        place = Path(directory)
        endpoint = free_ports(1)[0]
        mock = [sys.executable, "-m", "bench.gateway.mock", "--port", str(endpoint)]
        tree = stack.enter_context(running(mock, endpoint, place / "mock.log", cwd=ROOT))
        fronts = {ALONE: Front(ALONE, endpoint, tree)}
        firsts: dict[str, float] = {}
        for name in (OURS, *(peer.name for peer in wanted)):
            front = _started(name, wanted, given.peers, place, endpoint, stack)
            if front is not None:
                fronts[name], firsts[name] = front, time.perf_counter() - front.tree.begun
        idle = {name: fronts[name].tree.rss_mib() for name in firsts}
        runs = _measure(fronts, given.seconds, given.rounds)
        paced = {name: _load(front, "--paced", "--connections", str(PACED_STREAMS)) for name, front in fronts.items()}
        lives = {name: Life(firsts[name], idle[name], fronts[name].tree.rss_mib()) for name in firsts}
        reload_ms = ours.measure_reloads(place, fronts[OURS])
    document = report(runs, paced, lives, reload_ms)
    print(json.dumps(document) if given.json else table(document))
    return 1 if document["failures"] else 0


def _started(
    name: str, peers: Sequence[Peer], folder: Path, place: Path, endpoint: int, stack: ExitStack
) -> Front | None:
    """Start one proxy and wait for its first answer; None, said on stderr, where it is not there or does not answer."""
    # Some take the next port as well.
    port = free_ports(1)[0]
    try:
        if name == OURS:
            front = stack.enter_context(ours.serving(place, port, endpoint))
        else:
            peer = next(peer for peer in peers if peer.name == name)
            front = stack.enter_context(peer.serving(folder, place, port, endpoint))
    except RuntimeError as error:
        if name == OURS:
            raise
        print(f"without {name}: {error}", file=sys.stderr)
        return None
    end = time.monotonic() + FIRST_ANSWER_S
    while not ours.ask(front):
        if time.monotonic() > end:
            print(f"without {name}: no answer within {FIRST_ANSWER_S:g} s", file=sys.stderr)
            return None
        time.sleep(0.01)
    return front


def _measure(
    fronts: Mapping[str, Front], seconds: float, rounds: int
) -> dict[tuple[Case, str], list[dict[str, float]]]:
    """Run every case on everybody in turns."""
    runs: dict[tuple[Case, str], list[dict[str, float]]] = {(case, who): [] for case in CASES for who in fronts}
    for _ in range(rounds):
        for kind, connections in CASES:
            for who, front in fronts.items():
                spent = front.tree.cpu_s()
                arguments = ["--connections", str(connections), "--seconds", str(seconds)]
                figures = _load(front, *arguments, *(["--stream"] if kind == "stream" else []))
                figures["cpu_ms_per_request"] = (front.tree.cpu_s() - spent) * 1000 / max(1, figures["requests"])
                runs[(kind, connections), who].append(figures)
    return runs


def _load(front: Front, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.gateway.load", *front.load_arguments(), *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    sys.exit(main())

"""I/O: what the gateway costs: a mock endpoint alone and through the gateway, in alternated runs.

`python -m bench.gateway [--seconds N] [--rounds N] [--json]`. Both run on this machine with the load generator, so only
the ratios and differences inside one run mean anything.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START_S = 20.0
RELOADS = 10
KINDS = ("json", "stream")
CONNECTIONS = (1, 32)
TARGET_MEDIAN_MS = 0.3
TARGET_P99_MS = 1.0


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds of one case."""

    requests_per_s: float
    median_ms: float
    p99_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table or JSON, and return 0; 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description="Measure what the gateway costs.")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case, alternated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        conf = Path(directory)
        mock_port, port = _free_port(), _free_port()
        stack.enter_context(_process(mock_port, "bench.mock_upstream", "--port", str(mock_port)))
        stack_file = _write_configuration(conf, mock_port)
        arguments = ("--conf", str(conf), "--stack", "bench", "--routes", str(conf / "routes.json"))
        started = time.perf_counter()
        stack.enter_context(_process(port, "runtime.gateway", *arguments, "--port", str(port)))
        _ask(port, "chat")
        start_s = time.perf_counter() - started
        results, failures = _measure({"alone": mock_port, "gateway": port}, given.seconds, given.rounds)
        reload_ms = _measure_reloads(stack_file, port)
    report = _report(results, start_s, reload_ms, failures)
    print(json.dumps(report) if given.json else _table(report))
    return 1 if failures else 0


def _measure(ports: dict[str, int], seconds: float, rounds: int) -> tuple[dict[tuple[str, int, str], Figures], int]:
    """Run every case on both ports in turns; return medians by (kind, connections, who), and failed requests."""
    runs: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for kind in KINDS:
            for connections in CONNECTIONS:
                for who, port in ports.items():
                    runs.setdefault((kind, connections, who), []).append(_load(port, kind, connections, seconds))
    failures = sum(int(run["failures"]) for case in runs.values() for run in case)
    return {
        case: Figures(*(statistics.median(run[field] for run in found) for field in Figures.__annotations__))
        for case, found in runs.items()
    }, failures


def _load(port: int, kind: str, connections: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.gateway_load", "--port", str(port), "--seconds", str(seconds)]
    command += ["--connections", str(connections), *(["--stream"] if kind == "stream" else [])]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _measure_reloads(stack_file: Path, port: int) -> list[float]:
    """Return the milliseconds from saving the file to its new alias answering, sorted."""
    times = []
    for number in range(RELOADS):
        document = _document(stack_file)
        document["aliases"] = {f"alias-{number}": ["chat"]}
        saved = time.perf_counter()
        _save(stack_file, document)
        while not _ask(port, f"alias-{number}"):
            time.sleep(0.001)
        times.append((time.perf_counter() - saved) * 1000)
        # Nothing is left to be gathered with the next edit.
        time.sleep(0.3)
    return sorted(times)


def _report(
    results: dict[tuple[str, int, str], Figures], start_s: float, reload_ms: list[float], failures: int
) -> dict[str, Any]:
    cases = []
    for kind in KINDS:
        for connections in CONNECTIONS:
            alone, through = results[kind, connections, "alone"], results[kind, connections, "gateway"]
            cases.append(
                {
                    "kind": kind,
                    "connections": connections,
                    "alone_requests_per_s": round(alone.requests_per_s),
                    "gateway_requests_per_s": round(through.requests_per_s),
                    "ratio": round(through.requests_per_s / alone.requests_per_s, 3),
                    "added_median_ms": round(through.median_ms - alone.median_ms, 3),
                    "added_p99_ms": round(through.p99_ms - alone.p99_ms, 3),
                }
            )
    return {
        "version": 1,
        "cases": cases,
        "first_request_s": round(start_s, 2),
        "reload_median_ms": round(statistics.median(reload_ms)),
        "reload_max_ms": round(reload_ms[-1]),
        "failures": failures,
    }


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'case':<22}{'alone/s':>10}{'gateway/s':>11}{'ratio':>8}{'added median':>15}{'added p99':>12}"]
    for case in report["cases"]:
        name = f"{case['kind']}, {case['connections']} connection{'s' if case['connections'] > 1 else ''}"
        lines.append(
            f"{name:<22}{case['alone_requests_per_s']:>10,}{case['gateway_requests_per_s']:>11,}{case['ratio']:>8.2f}"
            f"{case['added_median_ms']:>12.3f} ms{case['added_p99_ms']:>9.3f} ms"
        )
    lines.append(f"targets at one connection: added median {TARGET_MEDIAN_MS} ms, added p99 {TARGET_P99_MS} ms")
    lines.append(f"start to first answer: {report['first_request_s']} s")
    lines.append(f"saved to answering: median {report['reload_median_ms']} ms, longest {report['reload_max_ms']} ms")
    if report["failures"]:
        lines.append(f"FAILED requests: {report['failures']}")
    return "\n".join(lines)


def _write_configuration(conf: Path, mock_port: int) -> Path:
    for group in ("stacks", "nodes", "models", "policies"):
        (conf / group).mkdir()
    stack_file = conf / "stacks" / "bench.yaml"
    _save(
        stack_file,
        {
            "stack": "bench",
            "nodes": {"here": {"reach": "local"}},
            "helpers": {"mock": {"url": f"http://127.0.0.1:{mock_port}", "models": {"mock": {}}}},
            "roles": {"chat": {"endpoints": {"mock": {"helper": "mock", "model": "mock"}}}},
            "gateway": {"node": "here"},
        },
    )
    return stack_file


def _save(stack_file: Path, document: dict[str, Any]) -> None:
    stack_file.write_text("# @package _global_\n" + json.dumps(document))


def _document(stack_file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stack_file.read_text().partition("\n")[2])
    return found


def _ask(port: int, model: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}]})
    connection.request("POST", "/v1/chat/completions", body)
    status = connection.getresponse().status
    connection.close()
    return status == 200


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def _process(port: int, module: str, *arguments: str) -> Iterator[None]:
    """Run a module until the block ends; the block begins when the port accepts connections."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{module} does not listen on port {port}")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait()


def _accepts(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    sys.exit(main())

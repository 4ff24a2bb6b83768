"""I/O: what a cluster costs: planning over ssh, mending a dead unit, and watching.

`python -m bench.cluster [--nodes 1,5,20]`. Nodes are network namespaces with an sshd each (needs root); each
runs one unit, a small server that answers at once, so that what is timed is orchestrate and not a model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from orchestrator.watching.pace import LOOK_S, QUIET_LOOK_S
from tests.cluster.lab import Lab, missing

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).parent / "orchestrate"
MOCK = ROOT / "bench" / "gateway" / "mock.py"
ROUNDS = 5
DEADLINE_S = 120.0
WATCHED_S = 2 * QUIET_LOOK_S
"""How long a watcher with nothing to do is measured: for two of its looks."""
LAUNCHER = """import time
import mlx.core as mx
mx.distributed.init(strict=True, backend="ring")
time.sleep(600)
"""


def main(argv: list[str] | None = None) -> int:
    """Print the figures; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster")
    parser.add_argument("--nodes", default="1,5,20", help="numbers of nodes, separated by commas (default 1,5,20)")
    options = parser.parse_args(argv)
    if reason := missing():
        print(f"not measured: {reason}")
        return 0
    sizes = [int(size) for size in options.nodes.split(",")]
    print("== plan and apply without changes, by number of nodes over ssh")
    measure_fleets(sizes)
    with tempfile.TemporaryDirectory() as folder, _fleet(Path(folder), 1) as fleet:
        print("== from kill -9 of a unit to serving again, under watch")
        measure_recovery(fleet)
        print("== what watching costs while nothing happens")
        measure_watching(fleet, Path(folder))
    return 0


class Fleet:
    """A stack with one unit on each of some namespaced nodes, and the gateway on this machine."""

    def __init__(self, root: Path, lab: Lab) -> None:
        self.lab = lab
        self.root = root
        self.conf = root / "conf"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def write(self) -> None:
        """Write the files of the stack."""
        nodes = list(self.lab.hosts)
        (self.conf / "stacks").mkdir(parents=True)
        self.lab.write_nodes(self.conf)
        local = {"reach": "local", "addresses": {"lan": self.lab.gateway}}
        (self.conf / "nodes" / "here.yaml").write_text(json.dumps({"here": local}))
        command = f"{sys.executable} {MOCK} --host {{host}} --port {{port}}"
        service = {"model": "mock", "engine": "command", "args": {"command": command}}
        stack = {
            "defaults": [{"/nodes": ["here", *nodes]}, "_self_"],
            "stack": "fleet",
            "models": {"mock": {"source": "path:/nowhere", "memory_gib": 0.1}},
            "services": {f"on-{node}": {**service, "nodes": [node]} for node in nodes},
            "roles": {"chat": {"endpoints": {node: {"service": f"on-{node}"} for node in nodes}}},
            "gateway": {"node": "here", "port": self.port},
        }
        (self.conf / "stacks" / "fleet.yaml").write_text(f"# @package _global_\n{json.dumps(stack, indent=1)}\n")

    def run(self, *arguments: str) -> str:
        """Run a command on the stack to its end."""
        done = self.lab.orchestrate("--conf", str(self.conf), *arguments)
        if done.returncode:
            raise RuntimeError(f"{arguments} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def seconds(self, *arguments: str) -> float:
        """Return the median wall time of a command."""
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            self.run(*arguments)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def watcher(self) -> subprocess.Popen[bytes]:
        """Start `watch` in the foreground of its own."""
        return subprocess.Popen(
            [PROGRAM, "--conf", str(self.conf), "watch", "fleet", "--json"], env=dict(self.lab.environment()),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def unit_pid(self) -> int:
        """Return the pid of the only unit that serves a model."""
        lines = [json.loads(line) for line in self.run("status", "fleet", "--json").splitlines()]
        return next(int(line["pid"]) for line in lines if line["type"] == "unit" and line["slot"].startswith("on-"))

    def answers(self) -> bool:
        """Tell whether the role is served now."""
        body = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}
        try:
            return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False


@contextlib.contextmanager
def _fleet(root: Path, size: int) -> Iterator[Fleet]:
    lab = Lab(root / "lab", root / "state")
    try:
        for number in range(size):
            lab.add(f"n{number}")
        fleet = Fleet(root, lab)
        fleet.write()
        try:
            fleet.run("apply", "fleet", "--yes")
            yield fleet
        finally:
            fleet.run("down", "fleet", "--yes")
    finally:
        lab.close()


def measure_fleets(sizes: Sequence[int]) -> None:
    """Print the times of `plan` and of an `apply` that has nothing to do, and their ratios to the first size."""
    first: tuple[float, float] | None = None
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder, _fleet(Path(folder), size) as fleet:
            plan, apply = fleet.seconds("plan", "fleet"), fleet.seconds("apply", "fleet", "--yes")
        first = first or (plan, apply)
        print(
            f"{size:3} nodes   plan {plan:5.2f} s ({plan / first[0]:.2f}x)"
            f"   apply without changes {apply:5.2f} s ({apply / first[1]:.2f}x)"
        )


def measure_recovery(fleet: Fleet) -> None:
    """Print how long the role does not answer after its only unit was killed."""
    watcher = fleet.watcher()
    try:
        times = []
        for _ in range(3):
            _until(fleet.answers)
            os.kill(fleet.unit_pid(), signal.SIGKILL)
            began = time.perf_counter()
            _until(lambda: not fleet.answers())
            _until(fleet.answers)
            times.append(time.perf_counter() - began)
        print("kill -9 to an answer: " + ", ".join(f"{seconds:.1f} s" for seconds in times))
    finally:
        _end(watcher)


def measure_watching(fleet: Fleet, folder: Path) -> None:
    """Print the share of a core that an idle watcher takes, and that of `mlx.launch` over two idle ranks."""
    watcher = fleet.watcher()
    try:
        time.sleep(LOOK_S)  # its start, with all imports, is not what is measured
        ours = _share_of_core(watcher.pid, WATCHED_S)
    finally:
        _end(watcher)
    script = folder / "idle.py"
    script.write_text(LAUNCHER)
    launcher = subprocess.Popen(
        [Path(sys.executable).parent / "mlx.launch", "-n", "2", "--backend", "ring", "--", sys.executable, str(script)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        time.sleep(10)
        theirs = _share_of_core(launcher.pid, 10.0)
        if launcher.poll() is not None:
            raise RuntimeError(f"mlx.launch ended with {launcher.returncode}")
    finally:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    print(f"orchestrate watch {ours:.2%} of a core, mlx.launch {theirs:.2%}")


def _share_of_core(pid: int, seconds: float) -> float:
    """Return the CPU time that a process took in some seconds, with all that it has started on this machine."""

    def spent() -> float:
        table = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit():
                    table[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
        family = [pid]
        for each in family:
            family += [child for child, fields in table.items() if int(fields[1]) == each]
        # utime and stime, and the same of ended children that were waited for: proc(5)
        return sum(int(field) for each in family for field in table[each][11:15]) / os.sysconf("SC_CLK_TCK")

    before, began = spent(), time.perf_counter()
    time.sleep(seconds)
    return (spent() - before) / (time.perf_counter() - began)


def _until(what: object) -> None:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if callable(what) and what():
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing within {DEADLINE_S:g} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())

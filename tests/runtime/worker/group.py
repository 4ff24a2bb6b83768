"""I/O: a sharded group as real processes over a ring on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from runtime.worker.group.control import new_keys
from tests.ports import free_ports
from tests.runtime.worker.process import DEADLINE_S, Worker, wait_until
from tests.runtime.worker.tap import Tap
from tests.runtime.worker.valve import Valve

GROUP_DEADLINE_S = 300.0
"""Three processes import, form a group, load and warm up on two cores that others use as well."""


class Rank:
    """One rank above 0."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL, env=environment)

    def text(self) -> str:
        """Return what it has logged."""
        return self.log.read_text()

    def wait_exit(self) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(DEADLINE_S)


class Group:
    """Starts every rank; as a context it ends them."""

    def __init__(
        self,
        model_dir: Path,
        place: Path,
        size: int,
        *arguments: str,
        strategy: str = "tensor",
        split: str | None = None,
        model_dirs: dict[int, Path] | None = None,
        keys: dict[int, tuple[str, str]] | None = None,
        launches: dict[int, str] | None = None,
        without: tuple[int, ...] = (),
        ring_valve: int | None = None,
        control_valve: int | None = None,
        control_tap: int | None = None,
        lost_port: int | None = None,
    ) -> None:
        """`model_dirs`, `keys` (public, secret) and `launches` give single ranks others; `without` are not started.

        Rank `ring_valve` dials its neighbour, and rank `control_valve` dials rank 0, through `self.valve`; rank
        `control_tap` dials rank 0 through `self.tap` and then the valve. Rank `lost_port` dials a port where its
        neighbour is not.
        """
        place.mkdir(parents=True, exist_ok=True)
        control, *ring = free_ports(size + 1)
        self.control = control
        self.keys = new_keys(size)
        self.valve = Valve(control if ring_valve is None else ring[(ring_valve + 1) % size])
        self.tap = None if control_tap is None else Tap(self.valve.port, self.keys[0], self.keys[control_tap])
        for rank in range(size):
            ports = list(ring)
            if rank == ring_valve:
                ports[(rank + 1) % size] = self.valve.port
            elif rank == lost_port:
                (ports[(rank + 1) % size],) = free_ports(1)
            (place / f"hosts{rank}.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        peers = " ".join(public for public, _ in self.keys)
        shape = ["--size", str(size), "--backend", "ring", "--strategy", strategy]
        shape += ["--split", split] if split else []
        self.ranks: dict[int, Rank] = {}

        def environment(rank: int) -> dict[str, str]:
            _, secret = (keys or {}).get(rank, self.keys[rank])
            own_peers = peers
            if keys and rank in keys:
                own_peers = " ".join(keys[rank][0] if n == rank else public for n, (public, _) in enumerate(self.keys))
            return {
                "MLX_RANK": str(rank),
                "MLX_HOSTFILE": str(place / f"hosts{rank}.json"),
                "ORCHESTRATE_CONTROL_SECRET": secret,
                "ORCHESTRATE_CONTROL_PEERS": own_peers,
            }

        def options(rank: int) -> list[str]:
            launch = (launches or {}).get(rank, "launch-1")
            port = self.valve.port if rank == control_valve else control
            if self.tap is not None and rank == control_tap:
                port = self.tap.port
            place = ["--rank", str(rank), "--launch", launch, "--control", f"127.0.0.1:{port}"]
            return [*shape, *place, *arguments]

        for rank in range(1, size):
            if rank not in without:
                directory = (model_dirs or {}).get(rank, model_dir)
                command = [sys.executable, "-m", "runtime.worker", "--model-dir", str(directory), "--name", "tiny"]
                log = place / f"rank{rank}.log"
                self.ranks[rank] = Rank([*command, *options(rank)], {**os.environ, **environment(rank)}, log)
        try:
            self.lead = Worker(
                (model_dirs or {}).get(0, model_dir), place / "rank0.log", *options(0), variables=environment(0)
            )
        except BaseException:
            self._end_ranks()
            raise

    @property
    def processes(self) -> dict[int, subprocess.Popen[bytes]]:
        """Return all processes by rank."""
        return {0: self.lead.process, **{number: rank.process for number, rank in self.ranks.items()}}

    def wait_ready(self) -> Self:
        """Wait for rank 0's `/ready`."""

        def look() -> bool:
            for number, process in self.processes.items():
                assert process.poll() is None, f"rank {number} ended with {process.returncode}: {self.texts()}"
            try:
                return self.lead.http.get("/ready").status_code == 200
            except httpx.TransportError:  # rank 0 has just ended: the next look tells why
                return False

        wait_until(look, "the group is ready", GROUP_DEADLINE_S)
        return self

    def wait_exits(self) -> dict[int, int]:
        """Wait for all ends; return the exit codes."""
        end = time.monotonic() + DEADLINE_S
        return {number: process.wait(max(0.1, end - time.monotonic())) for number, process in self.processes.items()}

    def texts(self) -> str:
        """Return all logs."""
        logs = {0: self.lead.text(), **{number: rank.text() for number, rank in self.ranks.items()}}
        return "\n".join(f"--- rank {number}\n{text}" for number, text in logs.items())

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank."""
        self.processes[rank].send_signal(number)

    def texts_of(self, *bodies: dict[str, Any]) -> list[str]:
        """Return the texts of completions asked one after another."""
        return [self.lead.text_of(**body) for body in bodies]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        self.lead.__exit__()
        self._end_ranks()

    def _end_ranks(self) -> None:
        self.valve.close()
        if self.tap is not None:
            self.tap.close()
        for rank in self.ranks.values():
            try:
                rank.process.wait(20)
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()

"""I/O: the gateway as it is measured: one helper, one role, keys asked for, and how soon an edited file is served."""

from __future__ import annotations

import compileall
import http.client
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.gateway.figures import OURS
from bench.gateway.peers import Front
from bench.gateway.processes import running
from orchestrator.keys import KeysAt

ROOT = Path(__file__).parents[2]
RELOADS = 10
KEYS_FILE = "keys.yaml"


@contextmanager
def serving(place: Path, port: int, endpoint: int) -> Iterator[Front]:
    """Run the gateway in front of the endpoint."""
    for package in ("runtime", "schemas"):
        # Compiled, as pip leaves an installed package and the peers; some environments forbid that to a start.
        compileall.compile_dir(ROOT / package, quiet=1)
    conf = place / OURS
    _write_configuration(conf, endpoint)
    key = KeysAt(conf, KEYS_FILE).add(("inference",), name="bench").text
    command = [sys.executable, "-m", "runtime.gateway", "--conf", conf, "--stack", "bench"]
    command += ["--routes", conf / "routes.json", "--port", str(port)]
    with running(command, port, place / f"{OURS}.log", cwd=ROOT) as tree:
        yield Front(OURS, port, tree, model="chat", headers=(f"authorization: Bearer {key}",))


def measure_reloads(place: Path, front: Front) -> list[float]:
    """Return the milliseconds from saving the file to its new alias answering."""
    stack_file = place / OURS / "stacks" / "bench.yaml"
    times = []
    for number in range(RELOADS):
        document: dict[str, Any] = json.loads(stack_file.read_text().partition("\n")[2])
        document["aliases"] = {f"alias-{number}": ["chat"]}
        saved = time.perf_counter()
        _save(stack_file, document)
        while not ask(front, f"alias-{number}"):
            time.sleep(0.001)
        times.append((time.perf_counter() - saved) * 1000)
        # Nothing is left to be gathered with the next edit.
        time.sleep(0.3)
    return times


def ask(front: Front, model: str = "") -> bool:
    """Ask once; tell whether it was answered."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
    body = json.dumps({"model": model or front.model, "messages": [{"role": "user", "content": "x"}]})
    lines = (line.partition(": ") for line in front.headers)
    headers = {"content-type": "application/json", **{name: value for name, _, value in lines}}
    try:
        connection.request("POST", front.path, body, headers)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _write_configuration(conf: Path, endpoint: int) -> None:
    for group in ("stacks", "nodes", "models", "policies"):
        (conf / group).mkdir(parents=True)
    _save(
        conf / "stacks" / "bench.yaml",
        {
            "stack": "bench",
            "nodes": {"here": {"reach": "local"}},
            "helpers": {"mock": {"url": f"http://127.0.0.1:{endpoint}", "models": {"mock": {}}}},
            "roles": {"chat": {"endpoints": {"mock": {"helper": "mock", "model": "mock"}}}},
            "gateway": {"node": "here", "auth": {"keys_file": KEYS_FILE}},
        },
    )


def _save(stack_file: Path, document: dict[str, Any]) -> None:
    stack_file.write_text("# @package _global_\n" + json.dumps(document))

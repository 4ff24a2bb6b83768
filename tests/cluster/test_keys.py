"""Keys that are made here, for a gateway on another machine: over a real sshd, in force at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster import answering
from tests.cluster.fleet import NAME, PORT, Fleet
from tests.cluster.lab import Host, Lab

KEYS = "secrets/keys.yaml"


@pytest.fixture
def fleet(lab: Lab, tmp_path: Path, provisioned: Callable[[Host], None]) -> Iterator[Fleet]:
    """A stack that asks for keys; its gateway and its one service, which needs no model, are on the first host."""
    made = Fleet(lab, tmp_path / "cache")
    provisioned(made.hosts["one"])
    command = f"{sys.executable} {answering.__file__} {{host}} {{port}}"
    coder: dict[str, Any] = {"model": "small", "nodes": ["one"], "engine": "command", "args": {"command": command}}
    made.write(
        {
            **made.stack(chat=None, coder=coder),
            "defaults": [{"/nodes": [*made.hosts, "local"]}, "_self_"],
            "models": {"small": {"source": "path:/models/small"}},
            "gateway": {"node": "one", "bind": "0.0.0.0", "port": PORT, "auth": {"keys_file": KEYS}},
        }
    )
    yield made
    made.run("down", NAME, "--yes", code=None)


def ask(fleet: Fleet, key: str | None) -> int:
    """Ask the gateway over the network, as a client does; return the status."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    body = {"model": "coder", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    url = f"{fleet.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=120, trust_env=False).status_code


def test_keys_reach_a_gateway_on_another_machine_and_leave_it_again(fleet: Fleet) -> None:
    first = json.loads(
        fleet.run("keys", "new", NAME, "--scope", "inference", "--json", code=None).stdout.splitlines()[0]
    )
    fleet.run("apply", NAME, "--yes")
    assert (ask(fleet, None), ask(fleet, "sk-orc-wrong"), ask(fleet, first["key"])) == (401, 401, 200)

    told = fleet.run("keys", "new", NAME, "--scope", "inference")
    second = told.stdout.strip()
    assert "In force at the gateway." in told.stderr
    assert ask(fleet, second) == 200, "in force when the command returns, without an apply"

    said = fleet.run("keys", "revoke", first["id"])
    assert "In force at the gateway." in said.stdout + said.stderr
    assert (ask(fleet, first["key"]), ask(fleet, second)) == (401, 200)

    host = fleet.hosts["one"]
    delivered = [path for path in (host.state / "stacks").rglob("*keys*") if path.is_file()]
    assert delivered
    for path in delivered:
        assert path.stat().st_mode & 0o077 == 0
        assert second.encode() not in path.read_bytes(), "only digests leave this machine"

    # What the orchestrator's own credential opens is asked for from the gateway's machine.
    assert "chat/coder" in fleet.run("breaker", "list", NAME).stdout
    answer = httpx.get(f"{fleet.url}/admin/endpoints", headers={"x-api-key": second}, timeout=60, trust_env=False)
    assert answer.status_code == 403

    host.stop_sshd()
    host.cut()
    lost = fleet.run("keys", "revoke", second.split("-")[2], code=None)
    assert lost.returncode != 0
    assert "not brought to one" in lost.stdout + lost.stderr, "whoever revokes a key is told that it is still good"
    host.restore()
    host.start_sshd()
    assert ask(fleet, second) == 200
    fleet.run("apply", NAME, "--yes")
    assert ask(fleet, second) == 401

"""Models on another host behind ssh: sent once, checked there, mended, removed; a cut cable leaves nothing half."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import Host, Lab, poll
from tests.fakes.model_hub import COMMIT, ModelHub
from tests.orchestrator.models.conftest import hub_environment

WEIGHTS = bytes(range(256)) * 400_000
STACK = """# @package _global_
defaults: [/nodes: [far, near], /models: [tiny, mine], _self_]
stack: lab
services:
  chat: {model: tiny, nodes: [far, near], replicas: 2}
roles:
  chat: {endpoints: {chat: {service: chat}}}
gateway: {node: far}
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    with ModelHub("lab/tiny", {"config.json": b"{}", "model.safetensors": WEIGHTS}) as served:
        for name, value in hub_environment(served, tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.fixture
def far(lab: Lab, hub: ModelHub) -> Host:
    conf = lab.root / "conf"
    for name, text in {
        "stacks/lab.yaml": STACK,
        "models/tiny.yaml": "tiny: {source: 'hub:lab/tiny'}\n",
        "models/mine.yaml": f"mine: {{source: 'path:{lab.root}/mine'}}\n",
    }.items():
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / name).write_text(text)
    lab.add("near")
    host = lab.add("far")
    lab.write_nodes(conf)
    return host


def weights(host: Host) -> Path:
    return host.state / "cache/models/hub--lab--tiny" / COMMIT / "model.safetensors"


def test_models_are_sent_checked_mended_and_removed(lab: Lab, far: Host, hub: ModelHub) -> None:
    done = lab.orchestrate("models", "sync", "lab")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(weights(host).read_bytes() == WEIGHTS for host in lab.hosts.values())
    assert len([path for method, path in hub.requests if method == "GET" and "safetensors" in path]) == 1
    (listed,) = [json.loads(line) for line in lab.orchestrate("models", "ls", "lab", "--json").stdout.splitlines()]
    assert (sorted(listed["nodes"]), listed["revision"]) == (["far", "near"], COMMIT)

    weights(far).write_bytes(b"X" + WEIGHTS[1:])
    done = lab.orchestrate("models", "verify", "lab")
    assert done.returncode == 1
    assert f"far/tiny (mlx): damaged: {weights(far)}" in done.stdout
    assert "near/tiny (mlx): all files are whole" in done.stdout
    assert lab.orchestrate("models", "verify", "lab", "--mend").returncode == 0
    assert lab.orchestrate("models", "verify", "lab").returncode == 0

    done = lab.orchestrate("models", "rm", "tiny", "--stack", "lab", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any(weights(host).exists() for host in lab.hosts.values())


def cut_while_sending(lab: Lab, far: Host) -> subprocess.CompletedProcess[str]:
    """Send the model to a host, pull its cable as soon as something arrives there, and return how sending ended."""
    arriving = far.state / "cache/incoming/hub--lab--tiny" / COMMIT
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lab.orchestrate, "models", "sync", "lab", "far")

        def has_begun() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return any(path.name.startswith(".") for path in arriving.iterdir())
            return False

        poll(lambda: sending.done() or has_begun())
        far.cut()
        try:
            return sending.result()
        finally:
            far.restore()


def test_cable_that_is_pulled_while_a_model_is_sent_leaves_nothing_half(lab: Lab, far: Host, hub: ModelHub) -> None:
    assert lab.orchestrate("models", "pull", "lab").returncode == 0
    for _ in range(10):
        done = cut_while_sending(lab, far)
        if not weights(far).exists():
            break
        assert weights(far).read_bytes() == WEIGHTS
        shutil.rmtree(far.state / "cache")  # all was there before the cable was pulled: once more
    assert done.returncode == 4, done.stdout + done.stderr
    assert not weights(far).exists()

    again = lab.orchestrate("models", "sync", "lab", "far")
    assert again.returncode == 0, again.stdout + again.stderr
    assert weights(far).read_bytes() == WEIGHTS


def test_node_that_is_away_is_told_and_the_others_are_served(lab: Lab, far: Host, hub: ModelHub) -> None:
    far.cut()
    done = lab.orchestrate("models", "sync", "lab")
    assert done.returncode == 4, done.stdout + done.stderr
    assert weights(lab.hosts["near"]).read_bytes() == WEIGHTS
    done = lab.orchestrate("models", "ls", "lab")
    assert done.returncode == 4
    assert "far could not be asked" in done.stderr
    far.restore()

"""I/O: `orchestrate models` as users run it: exit codes, tables, JSON lines, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.unit import ModelSpec, WorkerSpec, unit_id
from tests.fakes.model_hub import COMMIT, NEXT_COMMIT, ModelHub
from tests.orchestrator.models.conftest import WEIGHTS, hub_environment
from tests.orchestrator.node.harness import Shim
from tests.orchestrator.test_cli import Terminal

PROGRAM = Path(sys.executable).parent / "orchestrate"
SOURCE = "hub:lab/tiny"
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS}
STACK = """# @package _global_
defaults: [/nodes: [local], /models: [tiny, mine], _self_]
stack: lab
services:
  chat: {model: tiny, nodes: [local]}
  other: {model: mine, nodes: [local]}
roles:
  chat: {endpoints: {chat: {service: chat}, other: {service: other}}}
gateway: {node: local}
"""


class Trial:
    """A configuration of its own, whose models come from a small hub."""

    def __init__(self, root: Path, hub: ModelHub) -> None:
        self.root = root
        self.state = Path(os.environ["ORCHESTRATE_STATE"])
        self.environment = {**os.environ, **hub_environment(hub, root / "hf"), "NO_COLOR": "1"}
        self.write("stacks/lab.yaml", STACK)
        self.write("nodes/local.yaml", "local: {reach: local}\n")
        self.write("models/tiny.yaml", f"tiny: {{source: '{SOURCE}'}}\n")
        self.write("models/mine.yaml", f"mine: {{source: 'path:{root}/mine'}}\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [PROGRAM, "models", *arguments],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def lines(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--json", code=code).splitlines()]

    def files(self) -> dict[str, Path]:
        return {path.name: path for path in (self.state / "cache/models/hub--lab--tiny").glob("*/*")}


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with ModelHub("lab/tiny", dict(FILES)) as served:
        yield served


@pytest.fixture
def trial(tmp_path: Path, hub: ModelHub) -> Trial:
    return Trial(tmp_path, hub)


def test_model_is_pulled_listed_verified_and_removed(trial: Trial, hub: ModelHub) -> None:
    assert "There are no models in" in trial.run("ls")

    out = trial.run("pull", "lab")
    assert f"tiny (mlx) at {COMMIT[:12]}, 0.7 MB: installed; pin it with `revision: {COMMIT}`" in out
    assert "is there" in trial.run("pull", "lab", "tiny")

    rows = trial.run("ls", "lab").splitlines()
    assert [row.split()[0] for row in rows] == ["MODEL", "mine", "tiny"]
    assert "local lacks it" in rows[1]
    assert rows[2].split() == ["tiny", "mlx", COMMIT[:12], "0.7", "MB", "local", "-"]
    (stored,) = trial.lines("ls")
    assert (stored["source"], stored["forms"], stored["whole"]) == (SOURCE, ["mlx", "original"], True)

    assert "local/tiny (mlx): all files are whole" in trial.run("verify", "lab")
    assert "Add --yes to go ahead" in trial.run("rm", "tiny", code=1)
    assert "Removed 0.7 MB." in trial.run("rm", "tiny", "--yes")
    assert trial.files() == {}
    assert "There are: none." in trial.run("rm", SOURCE, "--yes", code=1)


@pytest.mark.slow
def test_damaged_file_is_named_and_mended(trial: Trial, hub: ModelHub) -> None:
    trial.run("sync", "lab", code=4)  # `mine` is not there
    weights = trial.files()["model.safetensors"]
    weights.write_bytes(b"X" + WEIGHTS[1:])

    assert f"local/tiny (mlx): damaged: {weights}" in trial.run("verify", "lab", code=1)
    (line,) = trial.lines("verify", "lab", "tiny", code=1)
    assert (line["node"], line["damaged"], line["revision"]) == ("local", ["model.safetensors"], COMMIT)
    weights.write_bytes(b"short")
    assert str(weights) in trial.run("verify", "lab", code=1)

    trial.run("verify", "lab", "--mend")
    assert weights.read_bytes() == WEIGHTS
    trial.run("verify", "lab")


@pytest.mark.slow
def test_update_says_what_the_branch_has_become_and_how_to_roll_it_out(trial: Trial, hub: ModelHub) -> None:
    trial.run("pull", "lab")
    assert "is there" in trial.run("pull", "lab", "--update")
    hub.push(NEXT_COMMIT, {**FILES, "config.json": b'{"model_type": "qwen3"}'})

    (line,) = [line for line in trial.lines("pull", "lab", "--update") if line["type"] == "pulled"]

    assert (line["outcome"], line["before"], line["revision"]) == ("updated", COMMIT, NEXT_COMMIT)
    assert NEXT_COMMIT[:12] in trial.run("ls", "lab")


SPEC = WorkerSpec(
    node="local",
    service="chat",
    replica=0,
    rank=0,
    model=ModelSpec(name="tiny", source=SOURCE),
    max_batch=8,
    max_waiting=64,
)


@pytest.mark.slow
def test_what_is_taken_into_use_while_the_question_stands_there_is_not_removed(trial: Trial, hub: ModelHub) -> None:
    trial.run("pull", "lab")
    shim = Shim(trial.state)
    asked = Terminal("models", "rm", "tiny", cwd=trial.root)
    try:
        asked.read_until(b"Remove them?")
        shim.start(unit_id(SPEC), "sleep", "1000", labels={"spec": SPEC.model_dump_json()})
        asked.press(b"y\n")
        assert asked.exit_code() == 1
        assert b"is in use on this-machine by lab/chat-0.0." in asked.shown
        assert trial.files()
    finally:
        shim.clean_up()


@pytest.mark.slow
def test_what_a_running_unit_uses_is_not_removed(trial: Trial, hub: ModelHub, tmp_path: Path) -> None:
    trial.run("pull", "lab")
    shim = Shim(trial.state)
    try:
        shim.start(unit_id(SPEC), "sleep", "1000", labels={"spec": SPEC.model_dump_json()})

        assert f"{SOURCE} is in use on this-machine by lab/chat-0.0." in trial.run("rm", "tiny", "--yes", code=1)
        assert "chat-0.0" in trial.run("ls", "lab")
        assert trial.files()
    finally:
        shim.clean_up()
    trial.run("rm", "tiny", "--yes")


def test_sync_names_the_node_that_lacks_its_own_files(trial: Trial, hub: ModelHub) -> None:
    out = trial.run("sync", "lab", code=4)
    assert f"path:{trial.root}/mine: there is no directory {trial.root}/mine; correct the model's `source`" in out
    assert "1 of 2 models are in place. Running it again goes on" in out
    (trial.root / "mine").mkdir()
    (trial.root / "mine" / "config.json").write_text("{}")

    assert "2 of 2 models are in place." in trial.run("sync", "lab", "local")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("pull", "lap"), 3, "did you mean 'lab'?"),
        (("pull", "lab", "tinyy"), 64, "Did you mean 'tiny'?"),
        (("sync", "lab", "lokal"), 64, "Did you mean 'local'?"),
        (("rm", "tyny", "--yes"), 1, "There are: none."),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(
    trial: Trial, hub: ModelHub, arguments: tuple[str, ...], code: int, says: str
) -> None:
    assert says in trial.run(*arguments, code=code)


def test_hub_that_cannot_be_reached_is_named(trial: Trial, hub: ModelHub) -> None:
    trial.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"

    out = trial.run("pull", "lab", code=1)

    assert "hub:lab/tiny at main cannot be downloaded" in out
    assert "HF_ENDPOINT" in out

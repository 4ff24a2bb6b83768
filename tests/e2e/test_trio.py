"""One model over three local ranks: up, loss of a rank, replacement beside the old group and in its place."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.trial import content_of, is_alive, poll

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RANKS = ("chat-0.0", "chat-0.1", "chat-0.2")


def link_ports(trial) -> set[str]:
    """Return what the living ranks of the group listen on for each other."""
    found = set()
    for record in (trial.state / "units" / "trio").glob("chat-*/links.json"):
        found.add(record.read_text())
    return found


def test_up_answers_and_status_shows_every_rank(trio):
    out = trio.run("up", "trio", "--yes").stdout
    assert "No changes" in out
    assert trio.answer() in out
    assert set(trio.units()) == {*RANKS, "gateway-0.0"}
    poll(lambda: all(unit["ready"] for unit in trio.units().values()))  # who answers late counts as not ready


def test_keys_of_the_control_plane_are_in_no_record_and_on_no_command_line(trio):
    pids = trio.pids()
    for slot in RANKS:
        process = Path(f"/proc/{pids[slot]}")
        entries = process.joinpath("environ").read_text().split("\0")
        environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
        secret = environment["ORCHESTRATE_CONTROL_SECRET"]
        kept = {path: content_of(path) for path in trio.state.rglob("*") if path.suffix != ".safetensors"}
        kept = {path: content for path, content in kept.items() if content and "cache" not in path.parts}
        assert kept
        assert [path for path, content in kept.items() if secret.encode() in content] == []
        assert secret not in process.joinpath("cmdline").read_text()


def test_a_killed_rank_ends_the_group_and_one_apply_starts_it_again_on_fresh_ports(trio):
    before, links, said = trio.pids(), link_ports(trio), trio.answer()
    os.kill(before["chat-0.2"], signal.SIGKILL)
    poll(lambda: not set(RANKS) & set(trio.units()))
    status = trio.run("status", "trio").stdout
    assert "killed by SIGKILL" in status
    assert "a rank of its group was lost" in status
    changes = [line for line in trio.json("plan", "trio") if line["type"] == "change"]
    # A model of a path is known by its node alone, so the plan cannot tell that its reference is there already.
    assert [(change["kind"], change["target"]) for change in changes if change["kind"] != "reference"] == [
        ("start", "local/chat-0")
    ]
    trio.run("apply", "trio", "--yes")
    after = trio.pids()
    assert after["gateway-0.0"] == before["gateway-0.0"]
    assert all(after[slot] != before[slot] for slot in RANKS)
    assert not link_ports(trio) & links
    assert trio.answer() == said


@pytest.mark.parametrize("how", ["surge", "swap"])
def test_a_group_is_replaced_as_a_whole_and_no_request_fails(trio, how):
    """Beside the old one nobody waits; in its place requests are held until the new one serves."""
    stop, outcomes = threading.Event(), []

    def client() -> None:
        body = {"model": "chat", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 4}
        while not stop.is_set():
            try:
                answer = httpx.post(f"{trio.url}/v1/chat/completions", json=body, timeout=180, trust_env=False)
                outcomes.append(answer.status_code)
            except httpx.HTTPError as error:
                outcomes.append(repr(error))

    before = trio.pids()
    thread = threading.Thread(target=client)
    thread.start()
    try:
        trio.run("apply", "trio", "services.chat.max_waiting=32", f"services.chat.update={how}", "--yes")
        poll(lambda: len(outcomes) > 2, 120)
    finally:
        stop.set()
        thread.join()
    after = trio.pids()
    assert all(after[slot] != before[slot] for slot in RANKS)
    assert not [pid for slot, pid in before.items() if slot in RANKS and is_alive(pid)]
    assert set(outcomes) == {200}
    trio.run("apply", "trio", "--yes")


def test_a_group_that_cannot_start_leaves_the_old_one_and_nothing_of_its_own(trio, tmp_path):
    broken = tmp_path / "broken-model"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"}')
    before = trio.pids()
    model = "models.smollm2-135m-instruct"
    overrides = [f"{model}.source='path:{broken}'", "services.chat.update=surge"]
    result = trio.run("apply", "trio", *overrides, "--yes", code=None)
    assert result.returncode in (1, 4), result.stdout + result.stderr
    assert trio.pids() == before
    assert trio.chat().status_code == 200
    trio.run("apply", "trio", "--yes")
    assert trio.pids() == before

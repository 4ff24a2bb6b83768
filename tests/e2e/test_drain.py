"""One of two replicas taken out of the routes and put back, under streaming load."""

from __future__ import annotations

import json
import threading

import httpx
import pytest

from tests.e2e.trial import Trial, poll

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TWO = "services.chat.replicas=2"


def states(trial: Trial) -> dict[str, str]:
    routes = json.loads((trial.state / "stacks" / trial.stack / "routes.json").read_text())
    return {entry["unit"].partition("@")[0]: entry["state"] for entry in routes["instances"]}


def stream(trial: Trial) -> str:
    body = {"model": "chat", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 300, "stream": True}
    try:
        url = f"{trial.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=120, trust_env=False) as answer:
            text = answer.read().decode()
    except httpx.HTTPError as error:
        return repr(error)
    return "done" if text.rstrip().endswith("data: [DONE]") else text


def test_a_drained_slot_loses_no_stream_and_stays_out_until_it_is_undone(trial):
    trial.run("up", "quickstart", TWO, "--yes")
    before = trial.pids()
    stop, outcomes = threading.Event(), []

    def client() -> None:
        while not stop.is_set():
            outcomes.append(stream(trial))

    clients = [threading.Thread(target=client) for _ in range(3)]
    for thread in clients:
        thread.start()
    try:
        poll(lambda: len(outcomes) >= 3, 120)
        out = trial.run("drain", "quickstart", "chat-1.0", "--yes").stdout
        count = len(outcomes)
        poll(lambda: len(outcomes) >= count + 3, 120)
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert set(outcomes) == {"done"}
    assert "still in flight" not in out
    assert states(trial) == {"chat-0.0": "ready", "chat-1.0": "draining"}

    again = trial.run("apply", "quickstart", TWO, "--yes").stdout
    assert "No changes" in again
    assert "chat-1.0 is drained; orchestrate drain quickstart chat-1.0 --undo" in again
    trial.run("restart", "quickstart", "chat-1.0", "--yes")
    assert states(trial) == {"chat-0.0": "ready", "chat-1.0": "draining"}
    assert trial.pids()["chat-0.0"] == before["chat-0.0"]
    assert "chat-1.0 is drained" in trial.run("status", "quickstart").stdout

    refused = trial.run("drain", "quickstart", "chat-0.0", code=1)
    assert "chat is left without anything that answers, no fallback" in refused.stdout
    assert states(trial)["chat-0.0"] == "ready"
    assert "did you mean chat-0.0" in trial.run("drain", "quickstart", "chatt-0.0", "--yes", code=1).stderr

    trial.run("drain", "quickstart", "chat-1.0", "--undo", "--yes")
    assert states(trial) == {"chat-0.0": "ready", "chat-1.0": "ready"}
    assert "is drained" not in trial.run("plan", "quickstart", TWO).stdout
    assert "drain chat-1.0 --undo" in trial.run("history", "quickstart").stdout
    assert stream(trial) == "done"


def test_down_ends_a_drain(trial):
    trial.run("up", "quickstart", "--yes")
    out = trial.run("drain", "quickstart", "local", "--yes").stdout
    assert "chat is left without anything that answers, no fallback" in out
    assert trial.chat().status_code == 503
    trial.run("down", "quickstart", "--yes")
    trial.run("up", "quickstart", "--yes")
    assert trial.chat().status_code == 200

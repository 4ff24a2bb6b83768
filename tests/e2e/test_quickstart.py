"""The whole way: up, change, reload, lose, heal, down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.e2e.trial import PROGRAM, Trial, heed_interrupts, is_alive, poll

pytestmark = pytest.mark.e2e


def test_a_second_up_restarts_nothing(running):
    before = running.pids()
    running.run("up", "quickstart", "--yes")
    assert running.pids() == before
    assert set(before) == {"chat-0.0", "gateway-0.0"}


def test_a_second_plan_has_no_changes(running):
    assert "No changes" in running.run("plan", "quickstart", "--detailed-exitcode", code=0).stdout
    assert [line["type"] for line in running.json("plan", "quickstart")] == ["plan"]


def test_a_plan_shows_a_replace_with_its_cause_and_changes_nothing(running):
    records = {path: path.read_bytes() for path in (running.state / "units").glob("*/*/record.json")}
    ports = ["services.chat.port=18123", "gateway.port=18124"]
    out = running.run("plan", "quickstart", *ports, "--detailed-exitcode", code=2).stdout
    assert "+/- local/chat-0.0" in out
    assert "-> 18123" in out
    assert {path: path.read_bytes() for path in (running.state / "units").glob("*/*/record.json")} == records
    assert all(is_alive(json.loads(record)["pid"]) for record in records.values())


@pytest.mark.slow
def test_status_knows_the_overrides_that_were_applied(running):
    running.run("apply", "quickstart", "services.chat.max_waiting=16", "--yes")
    assert "pending" not in running.run("status", "quickstart").stdout
    running.run("apply", "quickstart", "--yes")


def test_without_a_terminal_apply_asks_for_yes(running):
    result = running.run("apply", "quickstart", "services.chat.max_batch=2", code=1)
    assert "--yes" in result.stderr
    assert "Plan: 1 to replace" in result.stdout


def test_status_and_logs_name_the_units(running):
    out = running.run("status", "quickstart").stdout
    assert "local/chat-0.0" in out
    assert "role chat: chat is ready" in out
    assert "ready" in running.run("logs", "quickstart", "chat", "-n", "100").stdout
    assert "did you mean 'chat-0.0'" in running.run("logs", "quickstart", "chatt-0.0", code=1).stderr.lower()


@pytest.mark.slow
def test_a_replacement_under_load_fails_no_request(running):
    """The port changes by surge while clients stream: every stream ends with its own [DONE]."""
    stop = threading.Event()
    outcomes: list[str] = []

    def client() -> None:
        while not stop.is_set():
            body = {
                "model": "chat",
                "messages": [{"role": "user", "content": "Count."}],
                "max_tokens": 8,
                "stream": True,
            }
            try:
                with httpx.stream(
                    "POST", f"{running.url}/v1/chat/completions", json=body, timeout=60, trust_env=False
                ) as answer:
                    text = answer.read().decode()
                outcomes.append("done" if text.rstrip().endswith("data: [DONE]") else text)
            except httpx.HTTPError as error:
                outcomes.append(repr(error))

    clients = [threading.Thread(target=client) for _ in range(2)]
    for thread in clients:
        thread.start()
    try:
        before = running.pids()
        running.run("apply", "quickstart", "services.chat.max_batch=4", "--yes")
        middle = running.pids()
        running.run("apply", "quickstart", "--yes")
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert middle["chat-0.0"] != before["chat-0.0"]
    assert middle["gateway-0.0"] == before["gateway-0.0"]
    assert len(outcomes) >= 4
    assert set(outcomes) == {"done"}


@pytest.mark.slow
def test_a_gateway_replaced_on_its_own_port_refuses_no_connection(running):
    """`localhost` and 127.0.0.1 differ for the spec, so the gateway is replaced and listens on the same port."""
    stop = threading.Event()
    failures: list[str] = []
    answered = 0

    def client() -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                if httpx.get(f"{running.url}/v1/models", timeout=60, trust_env=False).status_code == 200:
                    answered += 1
            except httpx.HTTPError as error:
                failures.append(repr(error))

    thread = threading.Thread(target=client)
    thread.start()
    try:
        before = running.pids()
        running.run("apply", "quickstart", "gateway.bind=localhost", "--yes")
        after = running.pids()
        running.run("apply", "quickstart", "--yes")
    finally:
        stop.set()
        thread.join()
    assert before["gateway-0.0"] != after["gateway-0.0"]
    assert not is_alive(before["gateway-0.0"])
    assert before["chat-0.0"] == after["chat-0.0"]
    assert answered > 20
    assert failures == []


def test_an_alias_added_to_the_file_answers_and_disturbs_nothing(running):
    original = running.file.read_text()
    before = running.pids()
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Tell a story."}],
        "max_tokens": 1500,
        "temperature": 0,
        "stream": True,
    }
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as stream:
        lines = stream.iter_lines()
        first = next(line for line in lines if '"content"' in line)
        running.file.write_text(original + "\naliases:\n  gpt-4o-mini: [chat]\n")
        poll(lambda: running.chat("gpt-4o-mini").status_code == 200)
        rest = [line for line in lines if line]
    assert first
    assert rest[-1] == "data: [DONE]"
    assert running.pids() == before
    running.file.write_text(original)
    poll(lambda: running.chat("gpt-4o-mini").status_code == 404)


def test_a_broken_file_keeps_the_last_good_routes_and_is_shown_everywhere(running):
    original = running.file.read_text()
    line = 1 + original.splitlines().index("roles:")

    def is_told() -> bool:
        """Tell whether the gateway has read the file; while it is written it is empty for a moment."""
        report = running.admin()
        found = [(each["key"], each["line"], each["suggestion"]) for each in report["problems"]]
        return not report["is_current"] and ("rolls", line, "roles") in found

    running.file.write_text(original.replace("roles:", "rolls:"))
    try:
        poll(is_told)
        assert running.chat().status_code == 200
        status = running.run("status", "quickstart").stdout
        assert "keeps its last good routes" in status
        assert f"quickstart.yaml:{line}: rolls: unknown key; did you mean 'roles'?" in status
        metrics = httpx.get(f"{running.url}/metrics", timeout=60, trust_env=False).text
        assert "orchestrate_config_current 0.0" in metrics
        assert "rolls" in running.run("plan", "quickstart", code=3).stderr
    finally:
        running.file.write_text(original)
    poll(lambda: running.admin()["is_current"])
    assert running.run("validate", "quickstart").stdout.startswith("Stack quickstart is valid")


def test_a_killed_worker_is_told_at_once_and_healed_by_one_start(running):
    said = running.answer()
    os.kill(running.pids()["chat-0.0"], signal.SIGKILL)
    poll(lambda: "chat-0.0" not in running.units())
    began = time.monotonic()
    answer = running.chat()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"]
    assert time.monotonic() - began < 30  # nothing hangs: a refused connection, and no wait for a first token
    assert "killed by SIGKILL" in running.run("status", "quickstart").stdout
    changes = [line for line in running.json("plan", "quickstart") if line["type"] == "change"]
    assert [(change["kind"], change["target"]) for change in changes] == [("start", "local/chat-0.0")]
    running.run("apply", "quickstart", "--yes")
    assert running.answer() == said


@pytest.mark.slow
def test_a_new_unit_that_fails_never_takes_the_old_one_down(running, tmp_path):
    broken = tmp_path / "broken-model"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"}')
    before = running.pids()
    model = "models.smollm2-135m-instruct"
    result = running.run("apply", "quickstart", f"{model}.source='path:{broken}'", "--yes", code=4)
    assert "ended before it was ready" in result.stderr
    assert "  | " in result.stderr  # its last log lines
    assert "not tried" in result.stderr
    assert running.pids()["chat-0.0"] == before["chat-0.0"]
    assert running.chat().status_code == 200
    running.run("apply", "quickstart", "--yes")
    assert running.pids() == before


@pytest.mark.slow
def test_a_saved_plan_is_applied_and_a_stale_one_refused(running, tmp_path):
    saved = tmp_path / "plan.json"
    running.run("plan", "quickstart", "services.chat.max_waiting=32", "--out", str(saved))
    running.run("apply", str(saved), "--yes")
    stale = running.run("apply", str(saved), "--yes", code=6)
    assert "stale" in stale.stderr
    running.run("apply", "quickstart", "--yes")


def test_an_applied_stack_of_another_directory_is_left_alone(running, tmp_path):
    other = Trial(tmp_path / "other", running.state)
    other.edit(f"port: {other.port}", f"port: {running.port}")
    result = other.run("apply", "quickstart", "--yes", code=1)
    assert f"already running from {running.conf}" in result.stdout
    assert running.chat().status_code == 200


def test_the_port_of_a_stranger_is_named_with_its_pid(trial):
    code = (
        "import socket, sys; listener = socket.socket(); listener.bind(('127.0.0.1', int(sys.argv[1])));"
        "listener.listen(); print('up', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(trial.port)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout.readline() == b"up\n"
        result = trial.run("apply", "quickstart", "--yes", code=1)
        assert f"port {trial.port} on local, wanted by gateway.port, is taken by pid {stranger.pid}" in result.stdout
        stranger.stdin.close()
    assert trial.units() == {}


@pytest.mark.slow
def test_a_controller_killed_in_the_middle_is_mended_by_the_next_apply(trial):
    process = trial.popen("apply", "quickstart", "--yes")
    poll(lambda: len(list((trial.state / "units" / "quickstart").glob("*/record.json"))) == 2)
    process.kill()
    process.communicate()
    trial.run("apply", "quickstart", "--yes")
    assert set(trial.units()) == {"chat-0.0", "gateway-0.0"}
    assert trial.chat().status_code == 200
    assert "No changes" in trial.run("plan", "quickstart").stdout


@pytest.mark.slow
def test_of_two_applies_at_once_the_second_names_the_first_and_exits_5(trial):
    first = trial.popen("apply", "quickstart", "--yes")
    poll((trial.state / "units" / "quickstart").is_dir)
    first.send_signal(signal.SIGSTOP)  # however slow the second one is, the first is still at it
    try:
        second = trial.run("apply", "quickstart", "--yes", code=5)
    finally:
        first.send_signal(signal.SIGCONT)
    assert f"pid {first.pid}" in second.stderr
    out, err = first.communicate(timeout=300)
    assert first.returncode == 0, out + err


@pytest.mark.slow
def test_an_interrupt_ends_with_130_and_apply_goes_on_where_it_was(trial):
    process = trial.popen("apply", "quickstart", "--yes", preexec_fn=heed_interrupts)
    poll(lambda: len(list((trial.state / "units" / "quickstart").glob("*/record.json"))) == 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Running it again is safe" in err
    trial.run("apply", "quickstart", "--yes")
    assert trial.chat().status_code == 200


def test_units_survive_the_terminal_and_down_leaves_nothing(trial):
    process = trial.popen("up", "quickstart", "--yes", start_new_session=True)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    os.killpg(process.pid, signal.SIGKILL) if is_alive(process.pid) else None
    pids = trial.pids()
    assert trial.chat().status_code == 200
    assert "Everything is stopped." in trial.run("down", "quickstart", "--yes").stdout
    assert [pid for pid in pids.values() if is_alive(pid)] == []
    assert "Nothing of stack quickstart is running." in trial.run("down", "quickstart", "--yes").stdout
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", trial.port)) != 0


def test_the_journal_has_a_line_for_each_apply(running):
    lines = [json.loads(line) for line in (running.state / "stacks/quickstart/journal.jsonl").read_text().splitlines()]
    numbers = [line["generation"] for line in lines]
    assert numbers == list(range(1, len(numbers) + 1))
    assert lines[0]["outcome"] == "applied"
    assert running.admin()["generation"] in numbers


def test_the_program_can_be_called_by_its_absolute_path():
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.startswith("Usage: orchestrate")

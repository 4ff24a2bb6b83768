"""A watcher keeps a real stack as its files say, whatever happens to its units and files."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from orchestrator.snapshots import Snapshots, read_files
from tests.e2e.conftest import trial_in, up_in
from tests.e2e.trial import Trial, is_alive, poll
from tests.e2e.watching import Watching

pytestmark = pytest.mark.e2e
MODEL = "models.smollm2-135m-instruct"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir) -> Iterator[Trial]:
    """Return a stack that is up; each test leaves it up and healthy, and its file as it was."""
    yield from up_in(tmp_path_factory.mktemp("watched") / "trial", None, model=tiny_model_dir)


def answers(trial: Trial, model: str = "chat") -> bool:
    try:
        return trial.chat(model).status_code == 200
    except httpx.HTTPError:
        return False


def kill(trial: Trial, slot: str = "chat-0.0") -> int:
    pid = trial.pids()[slot]
    os.kill(pid, signal.SIGKILL)
    poll(lambda: not is_alive(pid))
    return pid


def history(trial: Trial) -> list[dict]:
    """Return what was recorded, latest first."""
    lines = (trial.state / "stacks/quickstart/journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in reversed(lines)]


@pytest.mark.slow
def test_what_ends_is_started_again_also_while_the_files_are_bad(up):
    """One start for both: the file is broken, then the worker is killed; no apply is run."""
    original = up.file.read_text()
    try:
        with Watching(up) as watching:
            up.file.write_text(original.replace("roles:", "rolls:"))
            watching.wait_for(lambda: any("did you mean 'roles'" in text for text in watching.events("problem")))
            gone = kill(up)
            watching.wait_for(lambda: up.pids().get("chat-0.0") not in (None, gone) and answers(up))
            watching.wait_for(lambda: "mended" in [line["event"] for line in watching.told])
            assert [text for text in watching.events("problem") if "rolls" in text and ":" in text]
            assert len([text for text in watching.events("problem") if "rolls: unknown" in text]) == 1  # once a change
            up.file.write_text(original)
            watching.wait_for(lambda: "nothing is in the way any more" in watching.events("note"))
            report = watching.wait_for(lambda: (seen := watching.report()) and seen["state"] == "well" and seen)
            assert report["mended"] >= 1
        assert watching.process.returncode == 0
        mended = [line for line in history(up) if line["actor"] == "watch"]
        assert all(line["command"].startswith("watch: ") and line["changes"] for line in mended)
        assert answers(up)
        assert "No changes" in up.run("plan", "quickstart").stdout
        # The gateway may follow the file later than the watcher: having it read the file is a generation too.
        killed = next(line for line in mended if "killed by SIGKILL" in line["command"])
        assert "killed by SIGKILL" in up.run("history", "quickstart", str(killed["generation"])).stdout
    finally:
        up.file.write_text(original)


@pytest.mark.slow
def test_a_rollback_is_in_force_until_the_next_apply(up):
    """The gateway serves the old files again, without a restart, and follows the user's only after an apply."""
    original = up.file.read_text()
    before = up.pids()
    try:
        up.file.write_text(original + "\naliases:\n  first: [chat]\n")
        up.run("apply", "quickstart", "--yes")
        poll(lambda: answers(up, "first"))
        # The gateway has taken over a hot edit by itself, so only another override makes a generation.
        up.run("apply", "quickstart", "services.chat.ready_timeout_s=500", "--yes")
        up.file.write_text(original + "\naliases:\n  second: [chat]\nhistory: {}\n")
        up.run("apply", "quickstart", "--yes")
        numbered = {line["generation"]: line for line in history(up)}
        first = min(numbered)
        rolled = up.run("rollback", "quickstart", str(first), "--yes").stdout
        assert f"the files of generation {first}" in rolled
        assert "returns to them" in rolled
        poll(lambda: not answers(up, "second"))
        last = history(up)[0]
        assert (last["command"], last["is_rollback"]) == (f"rollback to {first}", True)
        assert last["files"] == numbered[first]["files"]
        assert "Rolled back to" in up.run("status", "quickstart").stdout
        up.file.write_text(original + "\naliases:\n  third: [chat]\n")
        up.run("plan", "quickstart", "--detailed-exitcode", code=2)
        assert not answers(up, "third")
        up.run("apply", "quickstart", "--yes")
        poll(lambda: answers(up, "third"))
        assert not history(up)[0]["is_rollback"]
        assert "Rolled back" not in up.run("status", "quickstart").stdout
        assert up.pids() == before
    finally:
        up.file.write_text(original)
        up.run("apply", "quickstart", "--yes")


def test_a_rollback_says_what_there_is_and_changes_nothing_without_it(up):
    result = up.run("rollback", "quickstart", "999", "--yes", code=1)
    assert "There is no generation 999. There are: 1" in result.stderr


def test_a_rollback_to_files_that_are_no_longer_valid_changes_nothing(up):
    """As after an upgrade to a version that no longer takes a key: the kept files of a generation have one."""
    journal = up.state / "stacks/quickstart/journal.jsonl"
    text, kept, snapshots = journal.read_text(), history(up)[-1], Snapshots(journal.parent)
    old = dict(read_files(snapshots.place(kept["files"]), kept["names"]))
    old["stacks/quickstart.yaml"] = old["stacks/quickstart.yaml"].replace(b"roles:", b"rolls:")
    line = 1 + old["stacks/quickstart.yaml"].decode().splitlines().index("rolls:")
    records = (up.state / "units").glob("*/*/record.json")
    before = {path: path.read_bytes() for path in records}
    journal.write_text(text.replace(kept["files"], snapshots.keep(old).name))
    try:
        result = up.run("rollback", "quickstart", str(kept["generation"]), "--yes", code=3)
        assert len(journal.read_text().splitlines()) == len(text.splitlines())
    finally:
        journal.write_text(text)
    assert f"stacks/quickstart.yaml:{line}: rolls: unknown key; did you mean 'roles'?" in result.stderr
    assert "Nothing was changed" in result.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_the_audit_names_who_did_what_on_the_node(up):
    lines = up.json("history", "quickstart", "--audit", "-n", "500")
    starts = [line for line in lines if line["verb"] == "start" and line["outcome"] == "ok"]
    assert {line["unit"].split("@")[0] for line in starts} >= {"chat-0.0", "gateway-0.0"}
    assert all(line["generation"] and line["actor"] and line["node"] == "local" for line in starts)


@pytest.mark.slow
def test_an_edit_that_needs_a_new_process_replaces_it_and_another_disturbs_nothing(up):
    original = up.file.read_text()
    before = up.pids()
    try:
        with Watching(up) as watching:
            up.file.write_text(original + "\naliases:\n  hot: [chat]\n")
            watching.wait_for(lambda: answers(up, "hot"))
            assert up.pids() == before
            up.file.write_text(original.replace("engine: mlx", "engine: mlx\n    max_batch: 3"))
            watching.wait_for(lambda: up.pids().get("chat-0.0") not in (None, before["chat-0.0"]))
            watching.wait_for(lambda: watching.events("mended"))
            assert any("replace" in text for text in watching.events("change"))
            assert up.pids()["gateway-0.0"] == before["gateway-0.0"]
            assert answers(up)
    finally:
        up.file.write_text(original)
        up.run("apply", "quickstart", "--yes")


def test_monitor_prints_what_has_changed_where_there_is_no_terminal(up):
    def looked_twice() -> list[str]:
        lines: list[str] = up.run("monitor", "quickstart", "--every", "0.5", "-n", "2").stdout.splitlines()
        assert [line for line in lines if "local/gateway-0.0" in line]
        return [line for line in lines if "role chat" in line]

    poll(lambda: len(looked_twice()) == 1)  # what an earlier test has done to the role may just be over


def test_a_stack_that_does_not_exist_cannot_be_watched(up):
    assert "did you mean 'quickstart'" in up.run("watch", "quickstat", code=3).stderr


@pytest.mark.slow
def test_restart_gives_a_named_service_a_new_process_and_leaves_the_rest(up):
    before = up.pids()
    out = up.run("restart", "quickstart", "chat", "--yes").stdout
    assert "restart asked for" in out
    after = up.pids()
    assert after["chat-0.0"] != before["chat-0.0"]
    assert after["gateway-0.0"] == before["gateway-0.0"]
    assert answers(up)
    assert history(up)[0]["command"] == "restart chat"
    assert "Nothing of stack quickstart has failed" in up.run("restart", "quickstart", "--yes").stdout
    assert "chatt: no slot, service" in up.run("restart", "quickstart", "chatt", "--yes", code=1).stdout


@pytest.mark.slow
def test_a_gateway_that_ends_is_started_again(up):
    with Watching(up) as watching:
        gone = kill(up, "gateway-0.0")
        watching.wait_for(lambda: up.pids().get("gateway-0.0") not in (None, gone) and answers(up))


@pytest.mark.slow
def test_a_second_watcher_is_refused_and_an_apply_waits_for_a_pass(up):
    with Watching(up) as watching:
        second = up.run("watch", "quickstart", code=5)
        assert f"pid {watching.process.pid}" in second.stderr
        kill(up)
        watching.wait_for(lambda: (up.state / "locks/apply-quickstart").exists() and watching.events("change"))
        up.run("apply", "quickstart", "--yes")
        assert answers(up)
        assert "No changes" in up.run("plan", "quickstart").stdout
    units = list((up.state / "units" / "quickstart").glob("chat-0.0@*"))
    assert len(units) == 1


@pytest.mark.slow
def test_a_watcher_killed_in_the_middle_leaves_what_the_next_one_mends(up):
    with Watching(up) as watching:
        gone = kill(up)
        watching.wait_for(lambda: any("start" in text for text in watching.events("change")))
        watching.process.kill()
        watching.process.wait(timeout=120)
    with Watching(up) as watching:
        watching.wait_for(lambda: up.pids().get("chat-0.0") not in (None, gone) and answers(up))
    assert len(up.units()) == 2


@pytest.mark.slow
def test_an_interrupt_ends_it_and_what_runs_goes_on(up):
    before = up.pids()
    with Watching(up) as watching:
        watching.process.send_signal(signal.SIGINT)
        assert watching.process.wait(timeout=60) == 130
    assert up.pids() == before


@pytest.mark.slow
def test_a_crash_loop_ends_as_failed_and_restart_tries_again(tmp_path, tiny_model_dir):
    trial = trial_in(tmp_path / "loop", None, model=tiny_model_dir)
    broken = tmp_path / "broken-model"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"}')
    try:
        trial.run("apply", "quickstart", f"{MODEL}.source='path:{broken}'", "--yes", code=4)
        with Watching(trial) as watching:
            poll(lambda: any("chat-0.0" in text for text in watching.events("problem")), 400)
            report = poll(lambda: (seen := watching.report()) and seen["state"] == "blocked" and seen)
            assert any("chat-0" in note for note in report["notes"])
            tried = len(watching.events("change"))
            status = trial.run("status", "quickstart").stdout
            assert "failed" in status
            trial.run("restart", "quickstart", "--yes", code=4)
            starts = [line for line in trial.json("history", "quickstart") if line["command"] == "restart"]
            assert starts
            assert tried < 20
    finally:
        trial.close()


@pytest.mark.slow
def test_a_stack_that_heals_is_watched_by_a_unit_of_its_own(trial):
    trial.file.write_text(trial.file.read_text() + "heal: true\n")
    trial.run("up", "quickstart", "--yes")
    pids = trial.pids()
    assert set(pids) == {"chat-0.0", "gateway-0.0", "watcher-0.0"}
    report = trial.state / "stacks/quickstart/watcher.json"
    poll(lambda: report.exists() and json.loads(report.read_text())["pid"] == pids["watcher-0.0"], 120)
    gone = kill(trial)
    poll(lambda: trial.pids().get("chat-0.0") not in (None, gone) and answers(trial), 180)
    poll(lambda: any(line["actor"] == "watch" for line in history(trial)))  # written once everything is done
    assert f"watched by pid {pids['watcher-0.0']}" in trial.run("status", "quickstart").stdout
    assert "watching quickstart" in trial.run("logs", "quickstart", "watcher").stdout
    trial.wait_ended("watcher-0.0", kill(trial, "watcher-0.0"))
    assert "watched by" not in trial.run("status", "quickstart").stdout
    trial.run("apply", "quickstart", "--yes")
    watcher = trial.pids()["watcher-0.0"]
    poll(lambda: json.loads(report.read_text())["pid"] == watcher, 120)
    trial.run("down", "quickstart", "--yes")
    assert trial.units() == {}


@pytest.mark.slow
def test_down_ends_a_watcher_in_the_foreground(trial):
    trial.run("up", "quickstart", "--yes")
    with Watching(trial) as watching:
        trial.run("down", "quickstart", "--yes")
        assert watching.process.wait(timeout=60) == 0
        assert trial.units() == {}
        watching.wait_for(lambda: any("was taken down" in text for text in watching.events("ended")))

"""The journal survives torn lines, and the git stamp tells clean from dirty from nothing."""

from __future__ import annotations

import subprocess

from orchestrator.directories import Directories
from orchestrator.journal import Generation, Journal
from orchestrator.revisions import GitStamp, git_stamp
from schemas.base import StackName
from schemas.node import Node


def generation(number: int) -> Generation:
    return Generation(number, "4e1c9d2", False, ("a=1",), "/conf", "me@here", 1.0, ("start local/chat-0.0",), "applied")


def test_generations_count_up_from_nothing(tmp_path):
    journal = Journal(tmp_path / "stack")
    assert journal.last_generation() == 0
    journal.record(generation(1))
    journal.record(generation(2))
    assert Journal(tmp_path / "stack").last_generation() == 2


def test_a_line_torn_by_a_crash_is_passed_over(tmp_path):
    journal = Journal(tmp_path)
    journal.record(generation(7))
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"version": 1, "gener')
    assert journal.last_generation() == 7
    journal.record(generation(8))
    assert journal.last_generation() == 8


def test_a_line_that_is_no_text_is_passed_over(tmp_path):
    journal = Journal(tmp_path)
    journal.record(generation(7))
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\0\n")
    assert journal.last_generation() == 7


def test_the_nodes_of_the_last_apply_are_remembered(tmp_path):
    journal = Journal(tmp_path)
    assert journal.remembered_nodes() == {}
    journal.remember_nodes({"local": Node(reach="local", ports="18100-18109")})
    assert journal.remembered_nodes() == {"local": Node(reach="local", ports="18100-18109")}
    for damaged in ("{torn", "[]", '{"nodes": []}', "\0"):
        (tmp_path / "last_applied.json").write_text(damaged)
        assert journal.remembered_nodes() == {}


def git(directory, *arguments):
    argv = ["git", "-C", str(directory), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def test_the_stamp_of_a_repository_tells_clean_from_dirty(tmp_path):
    assert str(git_stamp(tmp_path)) == "an unversioned configuration"
    git(tmp_path, "init")
    assert git_stamp(tmp_path) == GitStamp(None)
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "a.yaml").write_text("a: 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    revision = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert git_stamp(conf) == GitStamp(revision, False, git(tmp_path, "rev-parse", "HEAD"))
    (tmp_path / "elsewhere.txt").write_text("not configuration")
    assert git_stamp(conf).short == revision
    (conf / "a.yaml").write_text("a: 2\n")
    assert git_stamp(conf).short == f"{revision}+"
    assert str(git_stamp(conf)) == f"{revision} (uncommitted changes)"


def test_directories_follow_the_environment(tmp_path):
    moved = Directories.from_environment({"ORCHESTRATE_STATE": str(tmp_path)})
    assert (moved.state, moved.cache) == (tmp_path, tmp_path / "cache")
    xdg = Directories.from_environment({"HOME": "/home/me", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c"})
    assert (str(xdg.state), str(xdg.cache)) == ("/s/orchestrate", "/c/orchestrate")
    relative = Directories.from_environment({"HOME": "/home/me", "XDG_STATE_HOME": "s"})
    assert str(relative.state) == "/home/me/.local/state/orchestrate"
    plain = Directories.from_environment({"HOME": "/home/me"})
    assert str(plain.state) == "/home/me/.local/state/orchestrate"
    assert str(plain.cache) == "/home/me/.cache/orchestrate"


def test_a_worker_token_is_made_once_and_private(tmp_path):
    directories = Directories(tmp_path, tmp_path / "cache")
    token = directories.worker_token(StackName("a"))
    assert len(token) > 30
    assert directories.worker_token(StackName("a")) == token
    assert directories.worker_token(StackName("b")) != token
    assert (tmp_path / "stacks/a/worker.token").stat().st_mode & 0o077 == 0


def test_a_token_file_left_empty_by_a_crash_is_made_again(tmp_path):
    directories = Directories(tmp_path, tmp_path / "cache")
    path = directories.stack(StackName("a")) / "worker.token"
    path.parent.mkdir(parents=True)
    path.touch()
    assert directories.worker_token(StackName("a"))

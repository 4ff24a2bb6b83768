"""An earlier generation's files are found again: those kept, else from git, and never anything else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.journal import Generation, Journal, known_numbers
from orchestrator.revisions import files_at, git_stamp
from orchestrator.rollback import RollbackError, compose_recovered, forget_old, recover
from orchestrator.snapshots import Snapshots, files_digest, read_files
from schemas.problems import ConfigurationError
from tests.conftest import REPOSITORY
from tests.quickstart import without_encoder


def git(directory: Path, *arguments: str) -> str:
    argv = ["git", "-C", str(directory), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


class Lab:
    """A configuration in a repository of its own, and the journal of its stack."""

    names = ("nodes/local.yaml", "models/smollm2-135m-instruct.yaml", "stacks/quickstart.yaml")

    def __init__(self, root: Path) -> None:
        self.repository = root / "repository"
        self.conf = self.repository / "deep" / "conf"
        shutil.copytree(REPOSITORY / "conf", self.conf)
        self.file = self.conf / "stacks" / "quickstart.yaml"
        self.file.write_text(without_encoder(self.file.read_text()))
        git(root, "init", str(self.repository))
        self.state = root / "state" / "stacks" / "quickstart"
        self.journal = Journal(self.state)
        self.snapshots = Snapshots(self.state)

    def commit(self) -> None:
        git(self.repository, "add", ".")
        git(self.repository, "commit", "-m", "change")

    def edit(self, before: str, after: str) -> None:
        text = self.file.read_text()
        assert before in text
        self.file.write_text(text.replace(before, after))

    def record(self, *, keep: bool = True, overrides: tuple[str, ...] = ()) -> int:
        """Write what an apply of the files as they are now leaves behind; returns its number."""
        files = read_files(self.conf, self.names)
        if keep:
            self.snapshots.keep(files)
        stamp = git_stamp(self.conf)
        number = self.journal.last_generation() + 1
        self.journal.record(
            Generation(
                number, stamp.revision, stamp.is_dirty, overrides, str(self.conf), "me@here", 1.0, (), "applied",
                commit=stamp.commit, files=files_digest(files), names=self.names,
            )
        )  # fmt: skip
        return number

    def recovered_port(self, number: int) -> int:
        recovered = recover(self.journal, self.snapshots, self.conf, number)
        return compose_recovered(recovered, self.conf, "quickstart").gateway.port


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_uncommitted_files_come_back_from_what_was_kept(lab):
    first = lab.record()
    lab.edit("port: 8000", "port: 8001")
    second = lab.record(overrides=("services.chat.max_batch=2",))
    lab.edit("port: 8001", "port: 8002")
    lab.record()
    assert lab.recovered_port(first) == 8000
    assert lab.recovered_port(second) == 8001
    assert "port: 8002" in lab.file.read_text()
    recovered = recover(lab.journal, lab.snapshots, lab.conf, second)
    assert not recovered.is_current
    assert compose_recovered(recovered, lab.conf, "quickstart").services["chat"].max_batch == 2


def test_committed_files_that_are_no_longer_kept_come_from_git(lab):
    lab.commit()
    first = lab.record(keep=False)
    lab.edit("port: 8000", "port: 8001")
    lab.commit()
    lab.record()
    before = (
        git(lab.repository, "status", "--porcelain"),
        git(lab.repository, "rev-parse", "HEAD"),
        lab.file.read_text(),
    )
    assert lab.recovered_port(first) == 8000
    after = git(lab.repository, "status", "--porcelain"), git(lab.repository, "rev-parse", "HEAD"), lab.file.read_text()
    assert before == after


def test_a_file_removed_since_comes_back(lab):
    lab.commit()
    first = lab.record(keep=False)
    (lab.conf / "models" / "smollm2-135m-instruct.yaml").unlink()
    lab.edit("models: [smollm2-135m-instruct]", "models: []")
    lab.commit()
    assert lab.recovered_port(first) == 8000


def test_dirty_files_are_never_replaced_by_those_of_the_commit(lab):
    lab.commit()
    lab.edit("port: 8000", "port: 8001")
    first = lab.record(keep=False)
    with pytest.raises(RollbackError, match=r"The files of generation 1 are gone: .* uncommitted changes"):
        recover(lab.journal, lab.snapshots, lab.conf, first)


def test_files_that_git_ignores_do_not_come_from_git(lab):
    """The tree counts as clean; its commit has not what was applied."""
    (lab.repository / ".gitignore").write_text("quickstart.yaml\n")
    lab.commit()
    first = lab.record(keep=False)
    assert not git_stamp(lab.conf).is_dirty
    with pytest.raises(RollbackError, match="not in the repository"):
        recover(lab.journal, lab.snapshots, lab.conf, first)


def test_kept_files_that_were_edited_are_not_what_was_applied(lab):
    lab.commit()
    first = lab.record()
    kept = lab.snapshots.place(lab.journal.find(first).files) / "stacks" / "quickstart.yaml"
    kept.chmod(0o600)
    kept.write_text(kept.read_text().replace("port: 8000", "port: 9999"))
    assert lab.recovered_port(first) == 8000  # from git, and the place is mended
    assert "port: 8000" in kept.read_text()


def test_files_that_are_the_same_as_now_need_no_place_of_their_own(lab):
    first = lab.record()
    assert recover(lab.journal, lab.snapshots, lab.conf, first).is_current
    lab.file.unlink()
    assert not recover(lab.journal, lab.snapshots, lab.conf, first).is_current


def test_an_unknown_generation_names_what_there_is(lab):
    for _ in range(3):
        lab.record()
    with pytest.raises(RollbackError, match=r"There is no generation 7\. There are: 1-3\."):
        recover(lab.journal, lab.snapshots, lab.conf, 7)


def test_there_is_nothing_to_go_back_to_of_a_down(lab):
    lab.journal.record(
        Generation(1, None, False, (), "/conf", "me@here", 1.0, ("stop local/chat-0.0",), "applied", command="down")
    )
    with pytest.raises(RollbackError, match="Generation 1 took the stack down"):
        recover(lab.journal, lab.snapshots, lab.conf, 1)


@pytest.mark.parametrize("is_committed", [True, False])
def test_old_files_that_are_no_longer_valid_are_reported_at_their_revision(lab, is_committed):
    lab.edit("roles:", "rolls:")  # as a file that an earlier version took
    if is_committed:
        lab.commit()
    first = lab.record()
    lab.edit("rolls:", "roles:")
    with pytest.raises(ConfigurationError) as caught:
        compose_recovered(recover(lab.journal, lab.snapshots, lab.conf, first), lab.conf, "quickstart")
    line = 1 + lab.file.read_text().splitlines().index("roles:")
    of = git(lab.repository, "rev-parse", "--short", "HEAD") if is_committed else "generation 1"
    shown = {str(problem) for problem in caught.value.problems}
    assert f"{of}:{lab.conf}/stacks/quickstart.yaml:{line}: rolls: unknown key; did you mean 'roles'?" in shown


def test_only_the_composed_files_are_kept_for_their_owner_only(lab):
    (lab.conf / "keys.txt").write_text("secret")
    lab.record()
    kept = [path for path in (lab.state / "files").rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == ["local.yaml", "quickstart.yaml", "smollm2-135m-instruct.yaml"]
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}
    assert (lab.state / "files").stat().st_mode & 0o077 == 0


def test_a_path_that_leaves_the_directory_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not below"):
        Snapshots(tmp_path).keep({"../escape.yaml": b"a"})
    assert list((tmp_path / "files").iterdir()) == []


def test_files_that_nobody_needs_are_removed(tmp_path):
    snapshots = Snapshots(tmp_path)
    digests = [snapshots.keep({"a.yaml": str(number).encode()}).name for number in range(4)]
    snapshots.prune(set(digests[2:]))
    assert [snapshots.has(digest) for digest in digests] == [False, False, True, True]


def test_digests_tell_names_and_contents_apart():
    digests = {files_digest(files) for files in ({"a": b"bc"}, {"ab": b"c"}, {"a": b"b", "c": b""}, {"a": b"b"})}
    assert len(digests) == 4


def test_git_is_asked_for_exactly_the_files_of_a_commit(lab):
    lab.commit()
    commit = git_stamp(lab.conf).commit
    assert files_at(lab.conf, commit, lab.names) == read_files(lab.conf, lab.names)
    assert files_at(lab.conf, commit, ("stacks/none.yaml",)) is None
    assert files_at(lab.conf, "0" * 40, lab.names) is None
    assert files_at(lab.repository.parent, commit, lab.names) is None


def test_numbers_are_told_in_spans():
    def numbers(*found: int) -> str:
        return known_numbers(Generation(number, None, False, (), "/conf", "me", 1.0, (), "applied") for number in found)

    assert numbers(4, 3, 1, 7, 2) == "1-4, 7"
    assert numbers() == ""


def test_the_files_of_the_last_twenty_generations_are_kept(lab):
    for number in range(25):
        lab.edit(f"port: {8000 + number}", f"port: {8001 + number}")
        lab.record()
        forget_old(lab.journal, lab.snapshots)
    assert len(list((lab.state / "files").iterdir())) == 20
    assert [lab.snapshots.has(each.files) for each in lab.journal.latest()] == [True] * 20 + [False] * 5

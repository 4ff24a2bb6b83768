"""The program's manners: exit codes, messages on stderr, JSON lines, nothing changed by bad input."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).parent / "orchestrate"


@pytest.fixture
def conf(tmp_path):
    """Return a copy of the files that come along, whose quickstart has a port that nobody has: it may run meanwhile."""
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    quickstart = tmp_path / "conf/stacks/quickstart.yaml"
    quickstart.write_text(quickstart.read_text().replace("port: 8000", f"port: {free_port()}"))
    return tmp_path / "conf"


@pytest.fixture
def orchestrate(monkeypatch, capfd):
    """Return what runs a command as the program does, in this process: every start of Python costs a second."""

    def run(*arguments, cwd, **environment):
        with monkeypatch.context() as patch, Path(os.devnull).open() as nothing:
            patch.chdir(cwd)
            patch.setattr(sys, "stdin", nothing)
            patch.setattr(sys, "argv", [str(PROGRAM), *arguments])
            for name, value in environment.items():
                patch.setenv(name, value)
            capfd.readouterr()
            code = int(main())
            said = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run


def test_the_process_ends_with_the_code_of_its_command(conf):
    done = subprocess.run([PROGRAM, "plan", "quikstart"], cwd=conf.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "did you mean 'quickstart'?" in done.stderr.lower()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["validate", "quikstart"], 3, "did you mean 'quickstart'?"),
        (["plan", "quikstart"], 3, "did you mean 'quickstart'?"),
        (["plan", "conf/stacks/quickstart.yaml"], 3, "did you mean 'quickstart'?"),
        (["apply", "conf/stacks/quickstart.yaml", "--yes"], 64, "without its path: orchestrate apply quickstart"),
        (["apply", "none.plan", "--yes"], 64, "no such file; save a plan with: orchestrate plan STACK --out none.plan"),
        (["apply", "quikstart", "--yes"], 3, "did you mean 'quickstart'?"),
        (["up", "quikstart", "--yes"], 3, "did you mean 'quickstart'?"),
        (["down", "quikstart", "--yes"], 3, "did you mean 'quickstart'?"),
        (["status", "quikstart"], 3, "did you mean 'quickstart'?"),
        (["logs", "quikstart"], 3, "did you mean 'quickstart'?"),
        (["validate", "quickstart", "services.chat.prt=1"], 3, "did you mean 'port'?"),
        (["plan", "quickstart", "x"], 3, "expected key=value"),
        (["watch", "quickstart", "--assume-lost", "locl"], 1, "no node is called so; did you mean local?"),
        (["plan"], 64, "Missing argument 'STACK'"),
        (["plan", "quickstart", "--yess"], 64, "No such option"),
        (["pln", "quickstart"], 64, "Did you mean 'plan'?"),
        (["trust", "m4max"], 64, "Did you mean 'node trust'?"),
        (["list", "quickstart"], 64, "Did you mean 'breaker list' or 'keys list'?"),
        (["breaker", "ls", "quikstart"], 3, "did you mean 'quickstart'?"),
        (["models", "list", "quikstart"], 3, "did you mean 'quickstart'?"),
        (["breaker", "list", "quickstart"], 1, "See: orchestrate status quickstart"),
        (["--conf", "nowhere", "plan", "quickstart"], 3, "nowhere: no such configuration directory"),
        (["plan", "quickstart", "--conf", "nowhere"], 3, "nowhere: no such configuration directory"),
    ],
)
def test_bad_input_has_its_exit_code_and_says_what_would_be_right(conf, arguments, code, says, orchestrate):
    done = orchestrate(*arguments, cwd=conf.parent)
    assert done.returncode == code, done.stderr
    assert says.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert not (Path(os.environ["ORCHESTRATE_STATE"]) / "units").exists()


@pytest.mark.parametrize("arguments", [("plan", "quickstart"), ("apply", "quickstart", "--yes"), ("models", "ls")])
def test_a_state_directory_that_cannot_be_used_is_told_with_the_way_out(conf, arguments, orchestrate, tmp_path):
    (tmp_path / "file").write_text("")
    done = orchestrate(*arguments, cwd=conf.parent, ORCHESTRATE_STATE=str(tmp_path / "file"))
    assert done.returncode in (1, 4)
    assert f"{tmp_path}/file/" in done.stderr
    assert "ORCHESTRATE_STATE names another" in done.stderr


@pytest.mark.parametrize("group", ["breaker", "keys", "models", "node", "probe"])
def test_the_help_of_a_group_cuts_no_sentence(group, conf, orchestrate):
    said = orchestrate(group, "--help", cwd=conf.parent).stdout
    assert "..." not in said.partition("Commands:")[2]


def test_problems_are_json_lines_when_asked(conf, orchestrate):
    (conf / "stacks/quickstart.yaml").write_text(
        (conf / "stacks/quickstart.yaml").read_text().replace("roles:", "rolls:").replace("engine: mlx", "engine: mxl")
    )
    done = orchestrate("plan", "quickstart", "--json", cwd=conf.parent)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3
    assert {line["key"] for line in lines if line["type"] == "problem"} == {"rolls", "services.chat.engine"}
    assert lines[-1] == {**lines[-1], "type": "error", "exit_code": 3}
    assert all(line["version"] == 1 for line in lines)


def test_show_prints_yaml_that_is_the_stack(conf, orchestrate):
    import yaml

    done = orchestrate("show", "quickstart", "gateway.port=8123", cwd=conf.parent)
    tree = yaml.safe_load(done.stdout)
    assert tree["gateway"]["port"] == 8123
    assert tree["services"]["chat"]["max_batch"] == 8  # defaults are shown


def test_a_secret_is_in_no_output(conf, orchestrate):
    stack = conf / "stacks/quickstart.yaml"
    helper = "\nhelpers:\n  box:\n    url: http://127.0.0.1:9\n    models: {m: {}}\n    key: canary-secret\n"
    stack.write_text(stack.read_text() + helper)
    for command in (["show"], ["show", "--json"], ["plan"], ["plan", "--json"], ["validate"]):
        done = orchestrate(command[0], "quickstart", *command[1:], cwd=conf.parent)
        assert done.returncode == 0, done.stderr
        assert "canary-secret" not in done.stdout + done.stderr


def test_conf_can_be_named_by_the_environment(conf, tmp_path, orchestrate):
    done = orchestrate("validate", "quickstart", cwd="/", ORCHESTRATE_CONF=str(conf))
    assert done.returncode == 0, done.stderr


def test_status_of_a_machine_without_stacks_says_how_to_begin(conf, orchestrate):
    done = orchestrate("status", cwd=conf.parent)
    assert done.returncode == 0
    assert "up quickstart" in done.stdout


def test_a_file_that_is_no_saved_plan_is_refused(conf, orchestrate):
    (conf.parent / "plan.json").write_text('{"type": "other"}')
    done = orchestrate("apply", "plan.json", "--yes", cwd=conf.parent)
    assert done.returncode == 64
    assert "plan.json is no plan saved with" in done.stderr


def test_a_reader_that_leaves_gets_no_traceback(conf):
    reading, writing = os.pipe()
    os.close(reading)
    argv = [PROGRAM, "show", "quickstart"]
    done = subprocess.run(argv, cwd=conf.parent, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.stderr == b""


class Terminal:
    """A program that believes that somebody sits in front of it."""

    def __init__(self, *arguments, cwd):
        self.shown = b""
        self.pid, self._screen = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execv(PROGRAM, [str(PROGRAM), *arguments])  # noqa: S606 - there is no shell on purpose

    def read_until(self, text):
        while text not in self.shown and (block := self._read()):
            self.shown += block
        assert text in self.shown, self.shown.decode()

    def press(self, keys):
        os.write(self._screen, keys)

    def exit_code(self):
        """Return the exit code; a program that does not end is killed."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while block := self._read():  # its last words
                    self.shown += block
                os.close(self._screen)
                return os.waitstatus_to_exitcode(status)
            if select.select([self._screen], [], [], 0.02)[0]:
                self.shown += self._read()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it does not end: {self.shown.decode()}")

    def _read(self):
        try:
            return os.read(self._screen, 4096)
        except OSError:  # how Linux says that the other side has left
            return b""


@pytest.mark.parametrize(
    ("keys", "code", "says"),
    [pytest.param(b"\x03", 130, b"Interrupted", id="ctrl-c"),
     pytest.param(b"\n", 1, b"Nothing was changed", id="enter"),
     pytest.param(b"n\n", 1, b"Nothing was changed", id="no", marks=pytest.mark.slow),
     pytest.param(b"\x04", 1, b"Nothing was changed", id="ctrl-d", marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_question_of_apply_can_be_left_without_a_change(conf, keys, code, says):
    terminal = Terminal("apply", "quickstart", cwd=conf.parent)
    terminal.read_until(b"[y/N]: ")
    terminal.press(keys)
    assert terminal.exit_code() == code, terminal.shown.decode()
    assert says in terminal.shown
    assert not (Path(os.environ["ORCHESTRATE_STATE"]) / "units").exists()


def test_a_plan_that_cannot_be_saved_is_an_error_that_names_the_file(conf, orchestrate):
    done = orchestrate("plan", "quickstart", "--out", "missing/plan.json", cwd=conf.parent)
    assert (done.returncode, done.stderr) == (1, "missing/plan.json: No such file or directory\n")


def test_a_journal_that_cannot_be_read_is_an_error_that_names_it(conf, orchestrate):
    journal = Path(os.environ["ORCHESTRATE_STATE"]) / "stacks" / "quickstart" / "journal.jsonl"
    journal.mkdir(parents=True)
    done = orchestrate("plan", "quickstart", cwd=conf.parent)
    assert (done.returncode, done.stderr) == (1, f"{journal}: Is a directory\n")


def test_a_user_without_a_home_is_told_what_to_set(conf):
    code = (
        "import os, sys; os.environ.pop('ORCHESTRATE_STATE'); os.environ.pop('HOME', None)\n"
        "import pwd; pwd.getpwuid = lambda _: (_ for _ in ()).throw(KeyError())\n"
        "from orchestrator.cli.main import main; sys.exit(main(['plan', 'quickstart']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=conf.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "This user has no home directory; set ORCHESTRATE_STATE to a directory for state and models.\n"
    )


def test_a_file_called_like_a_stack_does_not_hide_it_from_apply(conf, orchestrate):
    (conf.parent / "quickstart").write_text("notes")
    done = orchestrate("apply", "quickstart", cwd=conf.parent)
    assert "there is no terminal to ask on" in done.stderr


def test_overrides_beside_a_saved_plan_are_refused(conf, orchestrate):
    (conf.parent / "plan.json").write_text("{}")
    done = orchestrate("apply", "plan.json", "gateway.port=1", cwd=conf.parent)
    assert done.returncode == 64
    assert "its overrides are in it" in done.stderr


def test_logs_of_a_stack_that_never_ran_say_so(conf, orchestrate):
    done = orchestrate("logs", "quickstart", cwd=conf.parent)
    assert (done.returncode, done.stderr) == (1, "Stack quickstart has no units, and so no logs.\n")


def test_a_suggested_command_names_the_configuration_directory_it_was_called_with(conf, tmp_path, orchestrate):
    """Pasted from anywhere, it must mean the same files."""
    shutil.copytree(conf, tmp_path / "other")
    saved = orchestrate("plan", "quickstart", "--conf", "other", "--out", "p.json", cwd=tmp_path)
    assert "apply it with: orchestrate --conf other apply p.json" in saved.stderr
    plain = orchestrate("plan", "quickstart", "--out", "p.json", cwd=tmp_path)
    assert "apply it with: orchestrate apply p.json" in plain.stderr
    exported = orchestrate("plan", "quickstart", "--out", "p.json", cwd=tmp_path, ORCHESTRATE_CONF="other")
    assert "apply it with: orchestrate apply p.json" in exported.stderr

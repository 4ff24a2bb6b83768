"""`init`, `schema`, `import` and `completion`: files and scripts that the user goes on with."""

from __future__ import annotations

import json
import subprocess

import jsonschema
import pytest
import yaml

from orchestrator.cli.main import COMMANDS, main
from schemas.compose import compose
from schemas.export import file_schemas
from tests.conftest import REPOSITORY


def words(path):
    """Return the content of a YAML file without its comments."""
    return yaml.safe_load(path.read_text())


def test_init_writes_what_validates(tmp_path, capsys):
    assert main(["init", str(tmp_path / "mine")]) == 0
    assert f"--conf {tmp_path / 'mine'} up quickstart" in capsys.readouterr().out
    assert compose(tmp_path / "mine", "quickstart").stack.stack == "quickstart"
    assert main(["--conf", str(tmp_path / "mine"), "validate", "quickstart"]) == 0


@pytest.mark.parametrize(
    "file",
    ["stacks/quickstart.yaml", "nodes/local.yaml", "models/smollm2-135m-instruct.yaml", "models/all-minilm-l6-v2.yaml"],
)
def test_init_writes_the_shipped_quickstart(tmp_path, file):
    main(["init", str(tmp_path)])
    assert words(tmp_path / file) == words(REPOSITORY / "conf" / file)


def test_every_written_file_fits_the_schema_that_it_names(tmp_path):
    main(["init", str(tmp_path)])
    files = [path for folder in ("stacks", "nodes", "models", "policies") for path in (tmp_path / folder).iterdir()]
    assert len(files) == 5
    for path in files:
        (line,) = [line for line in path.read_text().splitlines() if "yaml-language-server" in line]
        schema = json.loads((path.parent / line.partition("$schema=")[2]).resolve().read_text())
        jsonschema.validate(words(path), schema)


def test_init_leaves_a_directory_with_files_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["init", str(tmp_path)]) == 1
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert main(["init", str(tmp_path), "--force"]) == 0
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_init_makes_a_repository_only_when_asked_and_keeps_secrets_out(tmp_path):
    main(["init", str(tmp_path / "plain")])
    assert not (tmp_path / "plain" / ".git").exists()
    assert main(["init", str(tmp_path / "kept"), "--git"]) == 0
    (tmp_path / "kept" / "secrets" / "keys.yaml").write_text("k")
    seen = subprocess.run(
        ["git", "status", "--porcelain", "-uall"], cwd=tmp_path / "kept", capture_output=True, text=True, check=True
    )
    assert "stacks/quickstart.yaml" in seen.stdout
    assert "secrets" not in seen.stdout


def test_a_schema_is_printed_or_written(tmp_path, capsys):
    assert main(["schema", "node"]) == 0
    assert json.loads(capsys.readouterr().out) == file_schemas()["node"]
    assert main(["schema", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.schema.json" for name in file_schemas()}
    assert main(["schema", "stak"]) == 64
    assert "Did you mean 'stack'" in capsys.readouterr().err


def test_a_hostfile_becomes_node_files_that_compose(tmp_path, capsys):
    main(["init", str(tmp_path)])
    hosts = [{"ssh": "m1.lan", "ips": ["10.0.0.1"]}, {"ssh": "m2.lan", "ips": ["10.0.0.2"]}]
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    arguments = ["--conf", str(tmp_path), "import", "hostfile", str(tmp_path / "hosts.json")]
    assert main(arguments) == 0
    assert "sharding: {backend: ring, strategy: tensor}" in capsys.readouterr().out
    assert words(tmp_path / "nodes" / "m1.yaml") == {
        "m1": {"reach": "ssh", "host": "m1.lan", "addresses": {"lan": "10.0.0.1"}}
    }
    (tmp_path / "nodes" / "m1.yaml").write_text("m1: {reach: none}")
    assert main(arguments) == 1
    assert "m1.yaml, m2.yaml" in capsys.readouterr().err
    assert words(tmp_path / "nodes" / "m1.yaml") == {"m1": {"reach": "none"}}
    assert main([*arguments, "--force"]) == 0
    assert words(tmp_path / "nodes" / "m1.yaml")["m1"]["reach"] == "ssh"


def test_what_is_no_hostfile_changes_nothing(tmp_path, capsys):
    (tmp_path / "hosts.json").write_text("[]")
    assert main(["import", "hostfile", str(tmp_path / "hosts.json"), "--out", str(tmp_path / "nodes")]) == 3
    assert "expected a list of hosts" in capsys.readouterr().err
    assert not (tmp_path / "nodes").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_names_our_variable(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "_ORCHESTRATE_COMPLETE" in capsys.readouterr().out


@pytest.fixture
def complete(monkeypatch, capsys):
    """Return what tells what a shell would offer for a line."""

    def ask(*typed: str) -> list[str]:
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setenv("_ORCHESTRATE_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(["orchestrate", *typed]))
        monkeypatch.setenv("COMP_CWORD", str(len(typed)))
        with pytest.raises(SystemExit) as end:
            main([])
        assert end.value.code == 0
        return [line.partition(",")[2] for line in capsys.readouterr().out.splitlines()]

    return ask


def test_a_shell_completes_commands_and_stacks(complete):
    assert complete("val") == ["validate"]
    assert set(complete("")) >= set(COMMANDS)
    assert "quickstart" in complete("plan", "q")
    assert complete("schema", "--o") == ["--out"]

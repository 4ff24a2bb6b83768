"""I/O: `orchestrate node trust`, `doctor` and `install` against real hosts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Host, Lab


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "conf" / "nodes").mkdir(parents=True)
    return tmp_path / "conf"


Orchestrate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def orchestrate(lab: Lab, conf: Path) -> Iterator[Orchestrate]:
    def call(*arguments: str, code: int = 0, **node: Any) -> subprocess.CompletedProcess[str]:
        lab.write_nodes(conf, **node)
        done = lab.orchestrate("--conf", str(conf), "node", *arguments)
        assert done.returncode == code, f"{arguments} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    yield call


def checks(done: subprocess.CompletedProcess[str], node: str = "one") -> dict[str, dict[str, str]]:
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    (found,) = [line for line in lines if line.get("node") == node]
    return {check["name"]: check for check in found["checks"]}


# -- trust -------------------------------------------------------------------------------------------------------------


def test_trust_shows_the_fingerprint_and_refuses_to_decide_without_a_terminal(
    lab: Lab, orchestrate: Orchestrate
) -> None:
    host = lab.add("one")
    lab.distrust()

    done = orchestrate("trust", "one", code=1)

    assert host.fingerprint in done.stdout
    assert "Add --yes" in done.stderr
    assert lab.known_hosts.read_text() == ""


def test_trusted_node_can_be_reached(lab: Lab, orchestrate: Orchestrate) -> None:
    lab.add("one")
    lab.distrust()
    assert checks(orchestrate("doctor", "one", "--json", code=4))["host key"]["verdict"] == "fail"

    orchestrate("trust", "one", "--yes")

    assert checks(orchestrate("doctor", "one", "--json"))["reach"]["verdict"] == "ok"
    assert lab.known_hosts.stat().st_mode & 0o077 == 0


def test_trusting_one_node_keeps_the_others(lab: Lab, orchestrate: Orchestrate) -> None:
    one, two = lab.add("one"), lab.add("two")
    lab.distrust()

    orchestrate("trust", "one", "--yes")
    orchestrate("trust", "two", "--yes")
    orchestrate("trust", "two", "--yes")

    assert sorted(lab.known_hosts.read_text().splitlines()) == sorted(
        f"{host.address} {host.host_key}" for host in (one, two)
    )


def test_changed_key_is_shouted_and_needs_replace(lab: Lab, orchestrate: Orchestrate) -> None:
    host = lab.add("one")
    before = host.fingerprint
    host.stop_sshd()
    host.new_host_key()
    host.start_sshd()

    done = orchestrate("trust", "one", "--yes", code=1)
    assert "CHANGED" in done.stderr
    assert before in done.stderr
    assert host.fingerprint in done.stderr
    assert host.host_key not in lab.known_hosts.read_text()

    orchestrate("trust", "one", "--yes", "--replace")
    assert lab.known_hosts.read_text() == f"{host.address} {host.host_key}\n"


def test_trust_of_a_node_that_is_off_is_unreachable(lab: Lab, orchestrate: Orchestrate) -> None:
    lab.add("one").stop_sshd()

    assert "one: " in orchestrate("trust", "one", "--yes", code=4).stderr


def test_key_of_a_host_behind_another_is_fetched_through_it(lab: Lab, orchestrate: Orchestrate) -> None:
    """ssh-keyscan knows no proxies; the key is the one of the host at the end."""
    lab.add("one")
    two = lab.add("two")
    lab.distrust()
    orchestrate("trust", "one", "--yes")
    known = f"\nHost {lab.hosts['one'].address}\n  UserKnownHostsFile {lab.known_hosts}\n"
    jump = f"\nHost {two.address}\n  ProxyCommand ssh -F {lab.ssh_config} -W %h:%p {lab.hosts['one'].address}\n"
    lab.ssh_config.write_text(known + jump + lab.ssh_config.read_text())

    done = orchestrate("trust", "two", "--yes")

    assert two.fingerprint in done.stdout
    assert checks(orchestrate("doctor", "two", "--json"), "two")["reach"]["verdict"] == "ok"


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_looks_at_all_nodes_and_says_which_cannot_be_reached(lab: Lab, orchestrate: Orchestrate) -> None:
    lab.add("one")
    lab.add("two").stop_sshd()

    done = orchestrate("doctor", "--json", code=4)

    assert {check["verdict"] for check in checks(done, "one").values()} <= {"ok", "warn"}
    assert "Start its ssh server" in checks(done, "two")["reach"]["found"]


def test_doctor_names_who_takes_a_port(lab: Lab, orchestrate: Orchestrate) -> None:
    host = lab.add("one")
    program = "import socket; s = socket.create_server(('', 18150)); print(flush=True); input()"
    with host.popen("python3", "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()

        found = checks(orchestrate("doctor", "one", "--json"))["ports"]

        holder.kill()
    assert found["verdict"] == "warn"
    assert "port 18150 of 18100-18199" in found["found"]
    assert f"pid {holder.pid} (" in found["found"]


def test_doctor_compares_the_file_with_the_machine(lab: Lab, orchestrate: Orchestrate) -> None:
    lab.add("one")

    found = checks(orchestrate("doctor", "one", "--json", code=1, memory_gib=1e6, rdma={"two": "mlx5_9"}))

    assert found["memory"]["verdict"] == "fail"
    assert "memory_gib: " in found["memory"]["mend"]
    assert found["rdma"]["verdict"] == "fail"
    assert "mlx5_9" in found["rdma"]["found"]


def test_doctor_tells_a_clock_that_is_an_hour_off(lab: Lab, orchestrate: Orchestrate, tmp_path: Path) -> None:
    host = lab.add("one")
    late = wrap_python(host, "import time; now = time.time; time.time = lambda: now() - 3600")
    host.stop_sshd()
    host.start_sshd(PATH=f"{late}:/usr/bin:/bin")

    found = checks(orchestrate("doctor", "one", "--json", code=1))["clock"]

    assert (found["verdict"], found["found"]) == ("fail", "60 min behind ours")
    assert "set-ntp" in found["mend"]


def test_doctor_says_how_to_install_python_where_there_is_none(lab: Lab, orchestrate: Orchestrate) -> None:
    host = lab.add("one")
    tools = host.home / "bin"
    tools.mkdir()
    for tool in ("sh", "uname", "id", "ps", "sleep", "true"):
        (tools / tool).symlink_to(f"/bin/{tool}")
    (tools / "python3").write_text("#!/bin/sh\necho 3.9.6\n")
    (tools / "python3").chmod(0o755)
    host.stop_sshd()
    host.start_sshd(PATH=str(tools))

    found = checks(orchestrate("doctor", "one", "--json", code=1))["python"]

    assert found["verdict"] == "fail"
    assert f"needs Python 3.11 or newer and has {tools}/python3 (3.9.6); install one" in found["found"]


def test_node_without_a_file_is_named_with_the_nearest(lab: Lab, orchestrate: Orchestrate) -> None:
    lab.add("one")

    assert "did you mean 'one'?" in orchestrate("doctor", "on", code=3).stderr


# -- install -----------------------------------------------------------------------------------------------------------


def test_install_provisions_ahead(lab: Lab, orchestrate: Orchestrate, provisioned: Callable[[Host], None]) -> None:
    host = lab.add("one")
    provisioned(host)  # of an earlier version, if the source has been edited since

    lines = [json.loads(line) for line in orchestrate("install", "one", "--json").stdout.splitlines()]

    assert lines[-1]["type"] == "result"
    assert lines[-1]["supervision_is_done"]
    assert checks(orchestrate("doctor", "one", "--json"))["environment"]["found"] == "provisioned"


def wrap_python(host: Host, code: str) -> Path:
    """Make a folder with a Python on it that runs some code first, in this host only."""
    folder = host.home / "wrapped"
    folder.mkdir()
    (folder / "usercustomize.py").write_text(code)
    program = folder / "python3.11"
    # Without site packages, as the shim is started, Python would not look at the code.
    program.write_text(f'#!/bin/sh\n[ "$1" = -S ] && shift\nPYTHONPATH={folder} exec /usr/bin/python3 "$@"\n')
    program.chmod(0o755)
    return folder

"""`orchestrate node discover` hears a real announcer on the loopback interface."""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings

import pytest
import yaml
from zeroconf import DNSOutgoing, DNSText, ServiceInfo, Zeroconf

from orchestrator.cli.main import main
from schemas.compose import read_nodes

LOOPBACK = "127.0.0.1"
HOST = f"studio-{os.getpid()}"
"""Who else tests on this machine announces other names."""
ADDRESS = "198.51.100.7"
DEADLINE_S = 60.0
FLAGS, IN_CLASS, TTL_S, TXT = 0x8400, 1, 120, 16


@pytest.fixture(scope="module")
def announcer():
    """Announce a Mac: ssh as a service, and the TXT record that macOS answers for `_device-info._tcp`."""
    zeroconf = Zeroconf(interfaces=[LOOPBACK])
    service = "_ssh._tcp.local."
    info = ServiceInfo(
        service, f"{HOST}.{service}", port=22, addresses=[socket.inet_aton(ADDRESS)], server=f"{HOST}.local."
    )
    device = DNSOutgoing(FLAGS)
    device.add_answer_at_time(DNSText(f"{HOST}._device-info._tcp.local.", TXT, IN_CLASS, TTL_S, b"\x0aosxvers=24"), 0)
    ended = threading.Event()

    def answer() -> None:
        while not ended.wait(0.1):
            zeroconf.send(device)

    thread = threading.Thread(target=answer)
    try:
        zeroconf.register_service(info, cooperating_responders=True)  # nobody to ask whether the name is free
        thread.start()
        yield
    finally:
        ended.set()
        thread.join()
        zeroconf.close()


@pytest.fixture
def conf(tmp_path):
    (tmp_path / "conf" / "nodes").mkdir(parents=True)
    return tmp_path / "conf"


@pytest.fixture
def discover(announcer, conf, capsys):
    """Return what listens again until the announcer is heard, and returns its line and the last one.

    What a try wrote that heard only a part is removed before the next one.
    """
    files = conf / "nodes"

    def call(*arguments: str) -> tuple[dict, dict]:
        deadline = time.monotonic() + DEADLINE_S
        before = set(files.iterdir())
        while time.monotonic() < deadline:
            words = ["--conf", str(conf), "node", "discover", "--json", "--seconds", "0.3", "--interface", LOOPBACK]
            assert main([*words, *arguments]) == 0
            *found, result = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            ours = [line for line in found if line["host"] == f"{HOST}.local"]
            if ours and ours[0]["os"]:
                return ours[0], result
            for written in set(files.iterdir()) - before:
                written.unlink()
        raise AssertionError(f"{HOST} was not heard within {DEADLINE_S} s")

    return call


def test_a_machine_is_heard_and_its_node_file_written(discover, conf):
    line, _ = discover("--write")
    assert (line["node"], line["state"], line["os"], line["ssh_port"]) == (HOST, "new", "macos", 22)
    assert "memory_gib: unknown" in (conf / "nodes" / f"{HOST}.yaml").read_text()
    node = read_nodes(conf)[HOST]
    assert (node.reach, node.host, node.addresses) == ("ssh", f"{HOST}.local", {"lan": ADDRESS})


def test_a_machine_that_has_a_node_file_is_known(discover, conf):
    (conf / "nodes" / "mine.yaml").write_text(f"mine: {{reach: none, addresses: {{lan: {ADDRESS}}}}}\n")
    line, result = discover("--write")
    assert (line["node"], line["state"], line["known_by"]) == ("mine", "known", "address")
    assert result["written"] == []


def test_a_file_of_that_name_is_left_as_it_is(discover, conf):
    path = conf / "nodes" / f"{HOST}.yaml"
    path.write_text("other: {reach: none}\n")
    line, result = discover("--write")
    assert line["state"] == "new"
    assert not line["written"]
    assert result["written"] == []
    assert path.read_text() == "other: {reach: none}\n"


def test_a_draft_is_printed_as_yaml_and_not_written(announcer, conf, capsys):
    deadline = time.monotonic() + DEADLINE_S
    words = ["--conf", str(conf), "node", "discover", "--seconds", "0.3", "--interface", LOOPBACK]
    while f"new: {HOST}" not in (out := _printed(words, capsys)):
        assert time.monotonic() < deadline, out
    assert yaml.safe_load(out[out.index(f"# {conf}") : out.index("\nTo write")])[HOST]["host"] == f"{HOST}.local"
    assert "node discover --write" in out
    assert list((conf / "nodes").iterdir()) == []


def _printed(words, capsys) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("interface", ["203.0.113.9", "eth0"])
def test_an_interface_that_this_machine_does_not_have_is_named(conf, capsys, interface):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main(["--conf", str(conf), "node", "discover", "--interface", interface]) == 1
        gc.collect()  # a socket that was left open says so now
    assert interface in capsys.readouterr().err
    assert not [each for each in told if "5353" in str(each.message)]


def test_writing_needs_a_configuration_directory(tmp_path, capsys):
    assert main(["--conf", str(tmp_path / "typo"), "node", "discover", "--write"]) == 3
    assert "no such directory of node files" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


def test_without_the_package_the_command_that_installs_it_is_named(conf):
    code = "import sys; sys.modules['zeroconf'] = None; from orchestrator.cli.main import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "--conf", str(conf), "node", "discover"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'orchestrate[discover]'" in done.stderr
    assert "Traceback" not in done.stderr

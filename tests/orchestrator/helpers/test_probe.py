"""`probe nodes` against real sockets of this machine."""

from __future__ import annotations

import json
import shutil
import socket
import sys

import pytest
import yaml

from orchestrator.cli.main import main
from orchestrator.helpers import probe as probing
from orchestrator.helpers.probe import probe
from orchestrator.readiness import client
from orchestrator.transport.local import LocalTransport
from schemas.stack import Helper
from tests.conftest import REPOSITORY
from tests.fakes import engines
from tests.fakes.engines import FakeEngine, FakeOllama
from tests.ports import free_port


def declared(url, *, api="ollama", node=None, key=None):
    fields = {"url": url, "api": api, "models": {"m": {}}}
    return Helper.model_validate(fields | ({"node": node} if node else {}) | ({"key": key} if key else {}))


async def probed(helper, transports=None, ports=()):
    async with client() as http:
        return (await probe(http, {"box": helper}, transports or {}, {}, ports=ports))["box"]


async def test_a_good_helper_is_well():
    async with FakeOllama("m:latest") as fake:
        found = await probed(declared(fake.url))
    assert found.is_well


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of Linux's loopback")
async def test_a_server_on_loopback_only_is_told_by_the_machine_itself():
    """127.0.0.2 stands for the LAN address: the server is bound to 127.0.0.1 and refuses there."""
    async with FakeOllama("m:latest") as fake:
        helper = declared(f"http://127.0.0.2:{fake.port}", node="box")
        found = await probed(helper, {"box": LocalTransport("box")})
        blind = await probed(helper)
    assert "only" in found.findings[0].cause
    assert f"127.0.0.1:{fake.port}" in found.findings[0].cause
    assert "tells two cases apart" in blind.findings[0].mend


async def test_a_port_where_nothing_listens_is_told_by_the_machine_itself():
    found = await probed(declared(f"http://127.0.0.1:{free_port()}", node="box"), {"box": LocalTransport("box")})
    assert any("nothing listens on port" in finding.cause for finding in found.findings)


async def test_a_wrong_port_is_found_among_the_usual_ones():
    async with FakeEngine(engines.vllm("m")) as fake:
        wrong = declared(f"http://127.0.0.1:{free_port()}", api="openai", key="sesame")
        found = await probed(wrong, ports=[fake.port])
    assert found.findings[0].cause == f"vllm 0.11.0 answers at 127.0.0.1:{fake.port}"
    assert all("authorization" not in request.headers for request in fake.seen)


async def test_a_public_host_is_not_scanned():
    assert not await probing._is_private("8.8.8.8")
    assert await probing._is_private("127.0.0.1")
    assert await probing._is_private("192.168.1.2")
    assert not await probing._is_private("no-such-host.invalid")


async def test_a_machine_that_cannot_be_asked_is_no_evidence():
    gone = LocalTransport("box")
    assert await probing._is_open_inside(None, 1) is None
    assert await probing._is_open_inside(gone, free_port()) is False
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await probing._is_open_inside(gone, server.getsockname()[1]) is True


@pytest.fixture
def conf(tmp_path):
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    return tmp_path / "conf"


def run_probe(conf, *more):
    return main(["--conf", str(conf), "probe", "nodes", "quickstart", *more])


def add_helper(conf, url):
    path = conf / "stacks" / "quickstart.yaml"
    helper = {"helpers": {"box": {"url": url, "api": "ollama", "node": "local", "models": {"m": {}}}}}
    path.write_text(path.read_text() + yaml.safe_dump(helper))


def test_the_command_prints_cause_and_mend_and_exits_with_4(conf, capsys):
    port = free_port()
    add_helper(conf, f"http://127.0.0.1:{port}")
    assert run_probe(conf) == 4
    shown = capsys.readouterr().out
    assert shown.startswith(f"box: 127.0.0.1 refuses port {port}")
    assert "  cause: " in shown
    assert "  mend:  " in shown
    assert run_probe(conf, "--json") == 4
    line = json.loads(capsys.readouterr().out)
    assert (line["type"], line["helper"], line["well"], line["seen"]["kind"]) == ("helper", "box", False, "refused")


def test_a_stack_without_helpers_is_said_to_have_none(conf, capsys):
    assert run_probe(conf) == 0
    assert capsys.readouterr().out == "Stack quickstart has no helpers.\n"

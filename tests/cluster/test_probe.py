"""The usual mistakes of a helper box, made on a host of its own and told apart over a real network."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import pytest

from orchestrator.helpers.observe import look
from orchestrator.helpers.probe import Probed, probe
from orchestrator.observed import HelperSilent
from orchestrator.readiness import client
from schemas.stack import Helper
from tests.cluster.lab import REPOSITORY, Host
from tests.runtime.gateway.harness import until

PORT = 11434


def declared(host: Host, port: int = PORT) -> Helper:
    fields = {"url": f"http://{host.address}:{port}", "api": "ollama", "node": "box", "models": {"m": {}}}
    return Helper.model_validate(fields)


@contextlib.asynccontextmanager
async def ollama(host: Host, bind: str, port: int = PORT) -> AsyncIterator[None]:
    """Run a fake Ollama on a host while the context lasts."""
    program = [sys.executable, "-m", "tests.fakes.engines", "ollama", "--host", bind, "--port", str(port)]
    process = host.popen(*program, "--model", "m:latest", cwd=REPOSITORY)

    def is_listening() -> bool:
        assert process.poll() is None
        return f":{port} " in host.run("ss", "-Hltn")

    try:
        await until(is_listening, within_s=60, what="the fake listens")
        yield
    finally:
        process.kill()
        process.wait()


async def probed(helper: Helper, host: Host | None = None) -> Probed:
    transports = {} if host is None else {"box": host.transport()}
    async with client() as http:
        return (await probe(http, {"rtx": helper}, transports, {}))["rtx"]


def firewall(host: Host, verdict: str) -> None:
    host.run("nft", "add", "table", "inet", "box")
    host.run("nft", "add", "chain", "inet", "box", "in", "{ type filter hook input priority 0; }")
    host.run("nft", "add", "rule", "inet", "box", "in", "tcp", "dport", str(PORT), *verdict.split())


async def test_a_helper_that_is_well(lab):
    box = lab.add("box")
    async with ollama(box, "0.0.0.0"):
        assert (await probed(declared(box))).is_well


async def test_an_ollama_on_its_loopback_only_is_told_through_ssh(lab):
    box = lab.add("box")
    async with ollama(box, "127.0.0.1"):
        (found,) = (await probed(declared(box), box)).findings
        assert found.cause == f"the server on {box.address} listens on 127.0.0.1:11434 only"
        assert "OLLAMA_HOST=0.0.0.0" in found.mend
        (blind,) = (await probed(declared(box))).findings
    assert "tells two cases apart" in blind.mend


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("drop", "drops what is sent"), ("reject with icmpx type host-unreachable", "its firewall rejects port 11434")],
)
async def test_a_closed_firewall_port_is_told_from_a_machine_that_is_off(lab, verdict, words):
    box = lab.add("box")
    firewall(box, verdict)
    async with ollama(box, "0.0.0.0"):
        (found,) = (await probed(declared(box))).findings
    assert words in found.cause
    assert "ufw allow 11434/tcp" in found.mend


async def test_a_wrong_port_is_found(lab):
    box = lab.add("box")
    async with ollama(box, "0.0.0.0"):
        (found,) = (await probed(declared(box, 11343))).findings
    assert found.cause == f"ollama 0.12.3 answers at {box.address}:11434"


async def test_a_machine_that_is_off_is_told(lab):
    box = lab.add("box")
    box.cut()
    async with client() as http:
        seen = await look(http, "rtx", declared(box), {})
    assert isinstance(seen, HelperSilent)
    assert seen.kind in ("no answer", "no route")
    (found,) = (await probed(declared(box))).findings
    assert "nothing at" in found.cause or "no route" in found.cause

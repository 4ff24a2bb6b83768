"""Schemathesis against a gateway that asks for keys: every operation of its document, with good and bad data."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.keys import KeysAt
from tests.clients.environments import python_of
from tests.fakes.everything import answer_everything
from tests.fakes.upstream import FakeUpstream
from tests.runtime.gateway.harness import ROOT, Conf, gateway_process

HERE = Path(__file__).parent
KEYS_FILE = "keys.yaml"
ROLES = {"chat": "chat", "embedding": "embedding", "reranking": "reranking", "spare": "chat"}
WITHIN_S = 600.0
FEWEST = 1500
"""Requests that have to be tried: with fewer of them something was left out."""


def stack(url: str) -> dict[str, Any]:
    """Return a stack with a role of each kind behind one endpoint, and one that nobody needs."""
    return {
        "stack": "lab",
        "nodes": {"here": {"reach": "local"}},
        "helpers": {"all": {"url": url, "models": {f"model-{role}": {"kind": kind} for role, kind in ROLES.items()}}},
        "roles": {role: {"endpoints": {role: {"helper": "all", "model": f"model-{role}"}}} for role in ROLES},
        "gateway": {"node": "here", "auth": {"keys_file": KEYS_FILE}},
    }


@pytest.mark.slow
async def test_schemathesis_finds_no_violation_and_no_server_error(tmp_path: Path) -> None:
    python = python_of("schemathesis")
    conf = Conf(tmp_path)
    key = KeysAt(conf.root, KEYS_FILE).add(("admin",))
    async with FakeUpstream(answer_everything) as fake:
        conf.write_stack(stack(fake.url))
        async with gateway_process(conf) as gateway:
            said = await run(
                tmp_path,
                str(python.parent / "schemathesis"),
                *("--config-file", str(HERE / "schemathesis.toml"), "run", f"{gateway.url}/openapi.json"),
                *("--header", f"Authorization: Bearer {key.text}", "--no-color"),
            )
            assert gateway.process.returncode is None, gateway.log
    assert "Traceback" not in gateway.log, gateway.log
    tried = re.search(r"(\d+) generated", said)
    assert tried is not None and int(tried[1]) >= FEWEST, said
    assert len(fake.seen) >= FEWEST / 10, "models are asked too"


async def run(place: Path, *argv: str) -> str:
    """Run a program, which may leave files at a place; fail with what it said where it fails."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.api_conformance.hooks"}
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=place, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(WITHIN_S):
            raw, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = raw.decode(errors="replace")
    assert process.returncode == 0, said[-60_000:]
    return said

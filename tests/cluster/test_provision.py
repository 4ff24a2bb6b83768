"""I/O: environments on bare nodes, with a real pip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.execute import Progress
from orchestrator.node.provision import environment, is_provisioned, provision
from orchestrator.node.site import site_of
from tests.cluster.lab import Host, Lab

Give = Callable[[Host], None]


async def test_bare_node_runs_a_worker_after_it(lab: Lab, tmp_path: Path) -> None:
    host = lab.add("one")
    transport = host.transport()
    site = await site_of(transport)
    seen: list[Progress] = []

    assert not await is_provisioned(transport, site)
    await provision(transport, site, seen.append)

    assert await is_provisioned(transport, site)
    done = await transport.run([environment(site).python, "-m", "runtime.worker", "--help"], timeout_s=120)
    assert b"--model-dir" in done.stdout
    phases = list(dict.fromkeys(each.phase for each in seen))
    assert phases == ["send", "prepare", "download", "install", "source"]
    assert max(each.done for each in seen if each.phase == "install") > 30

"""I/O: environments on bare nodes, with a real pip and the real lock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.execute import Progress
from orchestrator.node.client import ShimClient
from orchestrator.node.provision import (
    Environment,
    ProvisionError,
    environment,
    is_provisioned,
    provision,
    prune,
)
from orchestrator.node.reports import UnitLaunch
from orchestrator.node.site import Site, site_of
from orchestrator.transport.base import DiskFullError, NodeTransport
from tests.cluster.lab import REPOSITORY, Host, Lab, poll
from tests.fakes.package_index import wheel

Give = Callable[[Host], None]
PACKAGES = ("schemas", "runtime", "orchestrator")


async def reach(host: Host) -> tuple[NodeTransport, Site, Environment]:
    transport = host.transport()
    site = await site_of(transport)
    return transport, site, environment(site)


def quiet(_progress: Progress) -> None:
    """Show nothing."""


def builders(host: Host) -> list[int]:
    """Return the pids of the builder and of its pip on a host."""
    found = []
    for pid in host.pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if len(words) > 2 and (words[1].endswith(b"/builder.py") or words[1:3] == [words[1], b"install"]):
                found.append(pid)
    return found


def leftovers(host: Host) -> list[str]:
    incoming = host.state / "env" / "incoming"
    return [each.name for each in (host.state / "env").glob(".new-*")] + [each.name for each in incoming.glob("*")]


async def test_bare_node_runs_a_worker_after_it(lab: Lab) -> None:
    transport, site, wanted = await reach(lab.add("one"))
    seen: list[Progress] = []

    assert not await is_provisioned(transport, site)
    await provision(transport, site, seen.append)

    assert await is_provisioned(transport, site)
    argv = [wanted.python, "-c", "import mlx.core, runtime.worker.engine as engine; print(engine.__file__)"]
    done = await transport.run(argv, timeout_s=120)
    assert done.stdout.decode().strip() == f"{wanted.directory}/source/runtime/worker/engine.py", done.stderr
    phases = list(dict.fromkeys(each.phase for each in seen))
    assert phases == ["send", "prepare", "download", "install", "source"]
    assert max(each.done for each in seen if each.phase == "install") > 30
    assert leftovers(lab.hosts["one"]) == []


async def test_killed_in_the_middle_nothing_is_used_and_two_at_once_build_it_once(lab: Lab) -> None:
    host = lab.add("one")
    transport, site, _ = await reach(host)
    begun = asyncio.Event()

    def watch(at: Progress) -> None:
        if at.phase == "install" and at.done >= 3:
            begun.set()

    building = asyncio.create_task(provision(transport, site, watch))
    await begun.wait()
    for pid in builders(host):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ProvisionError):
        await building
    assert not await is_provisioned(transport, site)
    assert not (host.state / "env" / "packages").exists()

    one: list[Progress] = []
    two: list[Progress] = []
    other = host.transport()
    await asyncio.gather(provision(transport, site, one.append), provision(other, site, two.append))

    assert await is_provisioned(transport, site)
    installs = [any(each.phase == "install" for each in seen) for seen in (one, two)]
    assert sorted(installs) == [False, True]
    waits = [any(each.phase.startswith("wait") for each in seen) for seen in (one, two)]
    assert waits == [not each for each in installs]
    assert leftovers(host) == []


async def test_cancelled_it_ends_on_the_node_too(lab: Lab) -> None:
    host = lab.add("one")
    transport, site, _ = await reach(host)
    begun = asyncio.Event()
    building = asyncio.create_task(
        provision(transport, site, lambda at: begun.set() if at.phase == "download" else None)
    )
    await begun.wait()

    building.cancel()

    with pytest.raises(asyncio.CancelledError):
        await building
    await asyncio.to_thread(poll, lambda: not builders(host))
    assert not await is_provisioned(transport, site)


async def test_upgrade_of_ours_reuses_the_packages(lab: Lab, provisioned: Give, tmp_path: Path) -> None:
    host = lab.add("one")
    provisioned(host)
    transport, site, wanted = await reach(host)
    await provision(transport, site, quiet)
    copy = tmp_path / "copy"
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "requirements.lock", copy)
    (copy / "runtime" / "new_module.py").write_text('"""Pure: added by an upgrade."""\n')
    lab.write_nodes(tmp_path / "conf")

    code = "import sys; from orchestrator.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, "--conf", str(tmp_path / "conf"), "node", "install", "one"],
        cwd=copy, env=dict(lab.environment()), capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "install" not in done.stdout
    assert await is_provisioned(transport, site), "the one before is still there"
    (new,) = list((host.state / "env").glob("*/source/runtime/new_module.py"))
    assert str(new.parents[2]) != wanted.directory


async def test_prune_spares_what_a_unit_uses_and_what_was_asked_for_lately(lab: Lab, provisioned: Give) -> None:
    host = lab.add("one")
    provisioned(host)
    transport, site, wanted = await reach(host)
    await provision(transport, site, quiet)
    root = host.state / "env"
    assert wanted.directory is not None
    old = [root / name for name in ("used", "unused", "recent")]
    for place in old:
        shutil.copytree(wanted.directory, place, symlinks=True)
    for place in old[:2]:
        os.utime(place, (time.time() - 7200,) * 2)
    shim = ShimClient(transport)
    await shim.start(UnitLaunch("lab", "a", [f"{root}/used/bin/python", "-c", "import time; time.sleep(1000)"]))

    assert "unused" in await prune(transport, site)

    assert [place.name for place in old if place.exists()] == ["used", "recent"]
    assert await is_provisioned(transport, site)
    await shim.stop("lab", "a", grace_s=1)
    assert await prune(transport, site) == ("used",)


async def test_python_that_was_removed_is_built_again(lab: Lab, provisioned: Give) -> None:
    host = lab.add("one")
    provisioned(host)
    transport, site, wanted = await reach(host)
    await provision(transport, site, quiet)
    await transport.run(["ln", "-sf", "/opt/removed/bin/python3", wanted.python], timeout_s=60)
    assert not await is_provisioned(transport, site)

    await provision(transport, site, quiet)

    assert await is_provisioned(transport, site)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


async def failure(host: Host) -> ProvisionError:
    transport, site, _ = await reach(host)
    with pytest.raises(ProvisionError) as caught:
        await provision(transport, site, quiet)
    assert not await is_provisioned(transport, site)
    assert leftovers(host) == []
    return caught.value


async def test_index_that_cannot_be_reached_is_told(lab: Lab) -> None:
    host = lab.add("one")
    host.stop_sshd()
    host.start_sshd(PIP_CONFIG_FILE="/dev/null", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1")

    error = await failure(host)

    assert error.code == "no_index"
    assert "one: cannot be provisioned: the package index that pip is configured with on this node" in str(error)


async def test_other_files_than_those_locked_are_refused(lab: Lab, tmp_path: Path) -> None:
    host = lab.add("one")
    first = (REPOSITORY / "requirements.lock").read_text().split("==")
    name, version = first[0], first[1].split()[0]
    place = tmp_path / "index" / name
    place.mkdir(parents=True)
    file, data = wheel(name, version, {f"{name}.py": b"print('not what was locked')\n"})
    (place / file).write_bytes(data)
    host.stop_sshd()
    host.start_sshd(PIP_CONFIG_FILE="/dev/null", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(place))

    error = await failure(host)

    assert error.code == "hash_mismatch"
    assert name in str(error)


async def test_full_disk_is_told(lab: Lab) -> None:
    host = lab.add("one")
    host.mount_small_disk(host.state / "env", "60m")
    transport, site, _ = await reach(host)

    with pytest.raises(ProvisionError, match="the disk is full") as caught:
        await provision(transport, site, quiet)

    assert caught.value.code == "disk_full"
    assert not await is_provisioned(transport, site)


async def test_disk_that_takes_nothing_at_all_is_told(lab: Lab) -> None:
    host = lab.add("one")
    host.mount_small_disk(host.state / "env", "64k")
    transport, site, _ = await reach(host)

    with pytest.raises(DiskFullError, match="No space left"):
        await provision(transport, site, quiet)

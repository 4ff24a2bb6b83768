"""I/O: environments on bare nodes, with a real pip; ours is built once a session, the rest with small packages."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.execute import Progress
from orchestrator.node.client import ShimClient
from orchestrator.node.provision import (
    LOCK_FILE,
    Environment,
    ProvisionError,
    Sources,
    environment,
    is_provisioned,
    pack,
    provision,
    prune,
)
from orchestrator.node.reports import UnitLaunch
from orchestrator.node.site import Site, site_of
from orchestrator.transport.base import NodeDiskFullError, NodeTransport
from tests.cluster.lab import Host, Lab, poll
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


async def test_bare_node_runs_a_worker_after_it(lab: Lab, provisioned: Give) -> None:
    host = lab.add("one")
    provisioned(host)
    transport, site, wanted = await reach(host)
    await provision(transport, site, quiet)  # the source may have been edited since the packages were built

    argv = [wanted.python, "-c", "import mlx.core, runtime.worker.engine as engine; print(engine.__file__)"]
    done = await transport.run(argv, timeout_s=300)

    assert done.stdout.decode().strip() == f"{wanted.directory}/source/runtime/worker/engine.py", done.stderr
    assert leftovers(host) == []


# -- with a few small packages in place of ours ------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """A host whose pip sees nothing but a folder of small packages, and sources that are locked to them."""

    host: Host
    folder: Path
    files: dict[str, bytes]

    @property
    def sources(self) -> Sources:
        return pack(self.files)

    def write(self, name: str, content: bytes) -> bytes:
        """Put a package into the folder and return its file."""
        file, data = wheel(name, "1.0", {f"{name}/__init__.py": content})
        (self.folder / file).write_bytes(data)
        return data


@pytest.fixture
def small(lab: Lab, tmp_path: Path) -> Small:
    host, folder = lab.add("one"), tmp_path / "wheels"
    folder.mkdir()
    made = Small(host, folder, {f"{package}/__init__.py": b"" for package in PACKAGES})
    made.files["schemas/unit.py"] = b""
    lock = ""
    for name in ("pydantic", "first", "second"):
        lock += f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(made.write(name, b'')).hexdigest()}\n"
    made.files[LOCK_FILE] = f"{lock}absent==1.0 ; sys_platform == 'win32'\n".encode()
    host.stop_sshd()
    host.start_sshd(PIP_CONFIG_FILE="/dev/null", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))
    return made


async def test_killed_in_the_middle_nothing_is_used_and_two_at_once_build_it_once(small: Small) -> None:
    host, sources = small.host, small.sources
    transport, site, _ = await reach(host)

    def kill(at: Progress) -> None:
        if at.phase == "prepare":
            for pid in builders(host):
                with contextlib.suppress(ProcessLookupError):  # one may end with the other
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(ProvisionError):
        await provision(transport, site, kill, sources)
    assert not await is_provisioned(transport, site, sources)
    assert not (host.state / "env" / "packages").exists()

    one: list[Progress] = []
    two: list[Progress] = []
    other = host.transport()
    await asyncio.gather(provision(transport, site, one.append, sources), provision(other, site, two.append, sources))

    assert await is_provisioned(transport, site, sources)
    assert [any(each.phase == "install" for each in seen) for seen in (one, two)].count(True) == 1
    assert leftovers(host) == []


async def test_cancelled_it_ends_on_the_node_too(small: Small) -> None:
    transport, site, _ = await reach(small.host)
    begun = asyncio.Event()
    building = asyncio.create_task(
        provision(transport, site, lambda at: begun.set() if at.phase == "prepare" else None, small.sources)
    )
    await begun.wait()

    building.cancel()

    with pytest.raises(asyncio.CancelledError):
        await building
    await asyncio.to_thread(poll, lambda: not builders(small.host))
    assert not await is_provisioned(transport, site, small.sources)


async def test_upgrade_of_ours_reuses_the_packages(small: Small) -> None:
    transport, site, _ = await reach(small.host)
    before = small.sources
    await provision(transport, site, quiet, before)
    small.files["runtime/new.py"] = b"import first"
    seen: list[Progress] = []

    await provision(transport, site, seen.append, small.sources)

    assert {each.phase for each in seen} == {"send", "source"}
    python = environment(site, small.sources).python
    assert (await transport.run([python, "-c", "import runtime.new"], timeout_s=60)).exit_code == 0
    assert await is_provisioned(transport, site, before), "the one before is still there"


async def test_python_that_was_removed_is_built_again(small: Small) -> None:
    transport, site, _ = await reach(small.host)
    await provision(transport, site, quiet, small.sources)
    wanted = environment(site, small.sources)
    for broken in (wanted.python, f"{wanted.packages}/bin/python"):
        await transport.run(["ln", "-sf", "/opt/removed/bin/python3", broken], timeout_s=60)
    assert not await is_provisioned(transport, site, small.sources)

    await provision(transport, site, quiet, small.sources)

    assert await is_provisioned(transport, site, small.sources)


async def test_prune_spares_what_a_unit_uses_and_what_was_asked_for_lately(small: Small) -> None:
    transport, site, _ = await reach(small.host)
    await provision(transport, site, quiet, small.sources)
    root = small.host.state / "env"
    built = environment(site, small.sources)
    assert built.directory is not None
    names = ("used", "unused", "recent")
    for name in names:
        shutil.copytree(built.directory, root / name, symlinks=True)
    for name in names[:2]:
        os.utime(root / name, (time.time() - 7200,) * 2)
    shim = ShimClient(transport)
    await shim.start(UnitLaunch("lab", "a", [f"{root}/used/bin/python", "-c", "import time; time.sleep(1000)"]))

    assert await prune(transport, site) == ("unused",)

    assert sorted(each.name for each in root.iterdir() if each.name in names) == ["recent", "used"]
    assert await is_provisioned(transport, site, small.sources)
    await shim.stop("lab", "a", grace_s=1)
    assert await prune(transport, site) == ("used",)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


async def failure(small: Small) -> ProvisionError:
    transport, site, _ = await reach(small.host)
    with pytest.raises(ProvisionError) as caught:
        await provision(transport, site, quiet, small.sources)
    assert not await is_provisioned(transport, site, small.sources)
    assert leftovers(small.host) == []
    return caught.value


async def test_index_that_cannot_be_reached_is_told(small: Small) -> None:
    small.host.stop_sshd()
    small.host.start_sshd(PIP_CONFIG_FILE="/dev/null", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1")

    error = await failure(small)

    assert error.code == "no_index"
    assert "one: cannot be provisioned: the package index that pip is configured with on this node" in str(error)


async def test_other_files_than_those_locked_are_refused(small: Small) -> None:
    small.write("second", b"print('not what was locked')")

    error = await failure(small)

    assert error.code == "hash_mismatch"
    assert "of: second==1.0" in str(error)


async def test_package_that_nobody_has_for_this_python_is_told(small: Small) -> None:
    small.files[LOCK_FILE] += b"third==1.0 --hash=sha256:" + b"0" * 64 + b"\n"

    error = await failure(small)

    assert error.code == "no_match"
    assert "third==1.0" in str(error)


async def test_source_that_does_not_import_is_never_used(small: Small) -> None:
    small.files["schemas/unit.py"] = b"import nothing_like_this"

    error = await failure(small)

    assert error.code == "broken"
    assert "nothing_like_this" in str(error)


async def test_full_disk_is_told(small: Small) -> None:
    small.host.mount_small_disk(small.host.state / "env", "6m")

    error = await failure(small)

    assert error.code == "disk_full"


async def test_disk_that_takes_nothing_at_all_is_told(small: Small) -> None:
    small.host.mount_small_disk(small.host.state / "env", "64k")
    transport, site, _ = await reach(small.host)

    with pytest.raises(NodeDiskFullError, match="No space left"):
        await provision(transport, site, quiet, small.sources)

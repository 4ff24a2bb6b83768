"""I/O: labs of several hosts for every test of this folder; see tests/cluster/lab.py for what they can do.

Fixtures: `lab` is a fresh network for one test, `one_host` the module's own host for tests that only talk to it;
`provisioned(host)` gives a host the environment of units, which is built once a session (400 MB, a minute or two).
Without root, sshd or ip the tests are skipped; with ORCHESTRATE_REQUIRE_CLUSTER=1 that is a failure.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.execute import Progress
from orchestrator.node.provision import is_provisioned, provision
from orchestrator.node.site import site_of
from tests.cluster.lab import Host, Lab, masters, missing

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session", autouse=True)
def _can_make_labs() -> None:
    reason = missing()
    if reason and os.environ.get("ORCHESTRATE_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"the cluster tests are required and cannot run: {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A network without hosts yet; this process's environment reaches what is added."""
    (tmp_path / "lab").mkdir()
    made = Lab(tmp_path / "lab", tmp_path / "state")
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()
    _forget_connections(made)


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host for all tests of a module that do not harm it."""
    root = tmp_path_factory.mktemp("lab")
    made = Lab(root, root / "orchestrator")
    yield made.add("one")
    made.close()
    _forget_connections(made)


def _forget_connections(lab: Lab) -> None:
    """Remove the sockets of shared connections; the ssh behind them ends when its host is gone."""
    ours = {host.transport().socket for host in lab.hosts.values()}
    for socket in masters() & ours:
        socket.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def built_packages(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Provision a node once, really; return its `env` directory, whose packages other nodes may link to."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with (shared / "provision.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = shared / "provisioned"
        done = root / "done"
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            made = Lab(root / "lab", root / "orchestrator")
            try:
                host = made.add("provisioned")
                asyncio.run(_provision(host))
                done.write_text(str(host.state / "env"))
            finally:
                made.close()
        return Path(done.read_text())


async def _provision(host: Host) -> None:
    """Build the real environment on a bare node; the one time in a session that this is done."""
    transport = host.transport()
    site = await site_of(transport)
    seen: list[Progress] = []
    assert not await is_provisioned(transport, site)
    await provision(transport, site, seen.append)
    assert await is_provisioned(transport, site)
    assert list(dict.fromkeys(each.phase for each in seen)) == ["send", "prepare", "download", "install", "source"]
    assert max(each.done for each in seen if each.phase == "install") > 30


@pytest.fixture
def provisioned(built_packages: Path, lab: Lab) -> Callable[[Host], None]:
    """Return a function that gives a host the packages and environments that are built already."""

    return lambda host: give_environment(host, built_packages)


def give_environment(host: Host, built: Path) -> None:
    """Give a host the packages and environments that were built for another one."""
    target = host.state / "env"
    (target / "packages").mkdir(parents=True)
    for packages in (built / "packages").iterdir():
        (target / "packages" / packages.name).symlink_to(packages)
    for each in built.iterdir():
        if (each / "bin").is_dir():
            shutil.copytree(each, target / each.name, symlinks=True)

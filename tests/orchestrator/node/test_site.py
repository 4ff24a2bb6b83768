"""I/O: what a node says of itself, read by a real shell on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.directories import Directories
from orchestrator.node.site import Site, SiteError, discover, read_site, site_script
from orchestrator.transport.local import LocalTransport

ANSWER = {"os": "Linux", "machine": "x86_64", "user": "ann", "uid": "1000", "home": "/home/ann", "place": "/home/ann"}


def site(*pythons: str, **facts: str) -> Site:
    lines = [
        *(f"python={python}" for python in pythons),
        *(f"{key}={value}" for key, value in {**ANSWER, **facts}.items()),
    ]
    return read_site("one", "\n".join([*lines, "end=yes"]))


@pytest.mark.parametrize(
    ("found", "best"),
    [
        (["3.11.2 /usr/bin/python3"], "/usr/bin/python3"),
        (["3.13.1 /opt/homebrew/bin/python3.13", "3.9.6 /usr/bin/python3"], "/opt/homebrew/bin/python3.13"),
        (["3.11.9 /a/python3.11", "3.12.1 /b/python3"], "/b/python3"),
        (["broken /shims/python3.13", "3.11.9 /b/python3.11"], "/b/python3.11"),
        (["3.15.0 /a/python3", "3.12.0 /b/python3.12"], "/b/python3.12"),
        (["3.15.0 /a/python3"], "/a/python3"),
        (["3.12.4 /a/python3.12", "3.12.1 /b/python3.12"], "/a/python3.12"),
    ],
)
def test_best_python_is_the_newest_that_our_dependencies_know(found: list[str], best: str) -> None:
    assert site(*found).python == best


@pytest.mark.parametrize(
    ("system", "mend"), [("Linux", "sudo apt install python3"), ("Darwin", "brew install python@3.13")]
)
def test_too_old_python_is_named_with_the_way_to_a_new_one(system: str, mend: str) -> None:
    with pytest.raises(
        SiteError, match=r"one: needs Python 3.11 or newer and has /usr/bin/python3 \(3.9.6\)"
    ) as caught:
        site("3.9.6 /usr/bin/python3", os=system)
    assert mend in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "state", "cache"),
    [
        ({}, "/home/ann/.local/state/orchestrate", "/home/ann/.cache/orchestrate"),
        ({"state": "/s"}, "/s", "/s/cache"),
        ({"state": "~/s"}, "/home/ann/s", "/home/ann/s/cache"),
        ({"state": "s"}, "/home/ann/s", "/home/ann/s/cache"),
        ({"xdg_state": "/x", "xdg_cache": "rel"}, "/x/orchestrate", "/home/ann/.cache/orchestrate"),
        ({"home": "", "state": "/s"}, "/s", "/s/cache"),
    ],
)
def test_directories_follow_the_rules_of_this_machine(facts: dict[str, str], state: str, cache: str) -> None:
    found = site("3.11.2 /usr/bin/python3", **facts)

    assert (found.state, found.cache) == (state, cache)


def test_user_without_a_home_is_told_what_to_set() -> None:
    with pytest.raises(SiteError, match="no home directory; set ORCHESTRATE_STATE"):
        site("3.11.2 /usr/bin/python3", home="")


def test_another_system_is_refused() -> None:
    with pytest.raises(SiteError, match="runs FreeBSD; units run on Linux and macOS"):
        site("3.11.2 /usr/bin/python3", os="FreeBSD")


async def test_this_machine_says_what_directories_say() -> None:
    found = await discover(LocalTransport("here"))

    here = Directories.from_environment(os.environ)
    assert (found.state, found.cache) == (str(here.state), str(here.cache))
    assert found.os == ("macos" if sys.platform == "darwin" else "linux")
    assert found.uid == os.getuid()
    assert found.python_version >= (3, 11)


def test_python_outside_of_path_is_found_where_others_install_it(tmp_path: Path) -> None:
    place = tmp_path / "it's home" / ".local" / "bin"
    place.mkdir(parents=True)
    (place / "python3.14").symlink_to(sys.executable)
    environment = {"HOME": str(tmp_path / "it's home"), "PATH": "/bin:/usr/bin:relative::"}

    done = subprocess.run(["sh", "-c", site_script()], env=environment, capture_output=True, text=True, check=True)

    assert f" {place}/python3.14\n" in done.stdout
    assert "relative" not in done.stdout


async def test_shell_that_says_nonsense_is_no_site(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="printed no answer"):
        read_site("one", "Welcome to the router\n")

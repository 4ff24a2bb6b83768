"""I/O: what is known of a node before anything of ours runs there: its Python, its directories, its system."""

from __future__ import annotations

import os
import platform
import re
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.directories import Directories
from orchestrator.transport.base import NodeTransport, TransportError

LOWEST_PYTHON = (3, 11)
HIGHEST_PYTHON = (3, 14)
"""The newest minor version that is looked for by its name; a newer `python3` is taken too."""
DISCOVER_S = 60.0  # several interpreters are started, on a machine that may be loaded

# Shells that ssh starts read no profile on macOS: what Homebrew and pipx install is not in their PATH.
_SCRIPT = """
say() { printf '%s=%s\\n' "$1" "$2"; }
set -f
seen=:
old=$IFS; IFS=:
for folder in $PATH /opt/homebrew/bin /usr/local/bin "$HOME/.local/bin"; do
    for name in @names@; do
        case $folder in /*) ;; *) continue ;; esac
        case $seen in *":$folder/$name:"*) continue ;; esac
        seen=$seen$folder/$name:
        [ -x "$folder/$name" ] && [ ! -d "$folder/$name" ] || continue
        version=$("$folder/$name" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null </dev/null)
        say python "${version:-broken} $folder/$name"
    done
done
IFS=$old
say state "$ORCHESTRATE_STATE"
say xdg_state "$XDG_STATE_HOME"
say xdg_cache "$XDG_CACHE_HOME"
say home "$HOME"
say place "$PWD"
say os "$(uname -s)"
say machine "$(uname -m)"
say user "$(id -un)"
say uid "$(id -u)"
if [ -S "/run/user/$(id -u)/bus" ] && [ -e "/var/lib/systemd/linger/$(id -un)" ]; then
    say systemd_run "$(command -v systemd-run)"
fi
if [ "$(uname -s)" = Darwin ] && [ -S "/var/run/orchestrate.$(id -u).sock" ]; then
    say anchor "/var/run/orchestrate.$(id -u).sock"
fi
say end yes
"""


class SiteError(TransportError):
    """A node that answers cannot be used: it has no Python for us, or no place for files."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node as our programs find it. Paths are absolute and belong to the node.

    `state` and `cache` are the roots that `Directories` has on this machine. `systemd_run` is that program where a user
    manager outlives the login (linger), `anchor` the socket of a LaunchDaemon of ours. `is_local`: it is this machine,
    and units run from our own environment.
    """

    python: str
    python_version: tuple[int, int, int]
    state: str
    cache: str
    os: Literal["linux", "macos"]
    machine: str
    home: str
    user: str
    uid: int
    systemd_run: str | None = None
    anchor: str | None = None
    is_local: bool = False


_known: weakref.WeakKeyDictionary[NodeTransport, Site] = weakref.WeakKeyDictionary()


def local_site(directories: Directories) -> Site:
    """Return this machine with the Python that we run on."""
    return Site(
        python=sys.executable,
        python_version=sys.version_info[:3],
        state=str(directories.state),
        cache=str(directories.cache),
        os="macos" if sys.platform == "darwin" else "linux",
        machine=platform.machine(),
        home=os.environ.get("HOME") or str(Path.home()),
        user=os.environ.get("USER", ""),
        uid=os.getuid(),
        is_local=True,
    )


async def site_of(transport: NodeTransport) -> Site:
    """Return a node's site, found out once for each transport.

    Raises TransportError when it cannot be asked and SiteError, one of them, when it cannot be used.
    """
    if transport not in _known:
        _known[transport] = await discover(transport)
    return _known[transport]


def forget_site(transport: NodeTransport) -> None:
    """Find out again at the next question: the node has changed."""
    _known.pop(transport, None)


async def discover(transport: NodeTransport) -> Site:
    """Ask a node with one command of its POSIX shell; raises what `site_of` does."""
    done = await transport.run(["sh", "-c", site_script()], timeout_s=DISCOVER_S)
    try:
        return read_site(transport.node, done.stdout.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise SiteError(transport.node, f"does not say what it is: {error} {' '.join(said)}".rstrip()) from error


def site_script() -> str:
    """Return the shell text that `read_site` understands the answer of."""
    first, last = LOWEST_PYTHON[1], HIGHEST_PYTHON[1]
    names = [f"python3.{minor}" for minor in range(last, first - 1, -1)]
    # written out in the text: a variable would not be split at blanks while IFS is a colon
    return _SCRIPT.replace("@names@", " ".join([*names, "python3"]))


def read_site(node: str, answer: str) -> Site:
    """Read the answer of the script. Raises SiteError for a node that cannot be used, ValueError for nonsense."""
    pairs = [line.partition("=") for line in answer.splitlines()]
    facts: Mapping[str, str] = {key: value for key, _, value in pairs}
    if "end" not in facts:
        raise ValueError("it printed no answer;")
    python, version = _best_python(node, [value for key, _, value in pairs if key == "python"], facts)
    state, cache = _roots(node, facts)
    return Site(
        python=python,
        python_version=version,
        state=state,
        cache=cache,
        os=_system(node, facts.get("os", "")),
        machine=facts.get("machine", ""),
        home=facts.get("home", ""),
        user=facts.get("user", ""),
        uid=int(facts.get("uid", "")),
        systemd_run=facts.get("systemd_run") or None,
        anchor=facts.get("anchor") or None,
    )


def _system(node: str, name: str) -> Literal["linux", "macos"]:
    match name:
        case "Linux":
            return "linux"
        case "Darwin":
            return "macos"
        case _:
            raise SiteError(node, f"runs {name or 'an unknown system'}; units run on Linux and macOS")


def _best_python(node: str, found: list[str], facts: Mapping[str, str]) -> tuple[str, tuple[int, int, int]]:
    """Return the newest interpreter that is known to work with our dependencies, else a newer one."""
    usable = []
    for order, line in enumerate(found):
        text, _, path = line.partition(" ")
        if match := re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", text):
            version = (int(match[1]), int(match[2]), int(match[3]))
            if version[:2] >= LOWEST_PYTHON:
                usable.append((version[:2] <= HIGHEST_PYTHON, version[:2], -order, path, version))
    if usable:
        best = max(usable)
        return best[3], best[4]
    needed = ".".join(map(str, LOWEST_PYTHON))
    seen = ", ".join(f"{path} ({version})" for version, _, path in (line.partition(" ") for line in found))
    mend = {
        "Darwin": f"install one, with Homebrew: brew install python@3.{HIGHEST_PYTHON[1] - 1}",
        "Linux": "install one, on Debian and Ubuntu: sudo apt install python3; an older release has it as python3.11",
    }.get(facts.get("os", ""), "install one")
    raise SiteError(node, f"needs Python {needed} or newer and has {seen or 'none'}; {mend}")


def _roots(node: str, facts: Mapping[str, str]) -> tuple[str, str]:
    """Return the state and the cache directory by the rules of `Directories`."""
    home, place = facts.get("home", ""), facts.get("place", "")
    if moved := facts.get("state", ""):
        if moved == "~" or moved.startswith("~/"):
            moved = home + moved[1:]
        root = moved if moved.startswith("/") else f"{place}/{moved}"
        return root, f"{root}/cache"

    def base(named: str, default: str) -> str:
        if named.startswith("/"):  # a relative one is to be ignored, says the XDG base directory specification
            return named
        if not home.startswith("/"):
            raise SiteError(node, "its user has no home directory; set ORCHESTRATE_STATE for its ssh logins")
        return f"{home}/{default}"

    state = base(facts.get("xdg_state", ""), ".local/state")
    return f"{state}/orchestrate", f"{base(facts.get('xdg_cache', ''), '.cache')}/orchestrate"

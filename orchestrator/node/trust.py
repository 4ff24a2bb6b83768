"""I/O: the host keys of nodes: fetched, shown, and kept in a known-hosts file of our own once somebody has looked."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.transport.base import NodeUnreachableError, TransportError
from orchestrator.transport.ssh import effective_settings, run_here
from orchestrator.transport.ssh_words import CONNECT_S, Destination, failure, fingerprint

SCAN_S = CONNECT_S + 20.0
_TYPES = "ed25519,ecdsa,rsa"


@dataclass(frozen=True, slots=True)
class HostKey:
    """One public key: `name` is what ssh looks the host up by, `kind` as in known-hosts files, `blob` base64."""

    name: str
    kind: str
    blob: str

    @property
    def fingerprint(self) -> str:
        """Return its SHA256 fingerprint as OpenSSH writes it."""
        return fingerprint(self.blob) or "unreadable"

    def line(self) -> str:
        """Return it as a line of a known-hosts file."""
        return f"{self.name} {self.kind} {self.blob}"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host shows beside what is trusted of it."""

    shown: tuple[HostKey, ...]
    trusted: tuple[HostKey, ...]

    @property
    def is_new(self) -> bool:
        """Tell whether nothing is trusted yet."""
        return not self.trusted

    @property
    def is_known(self) -> bool:
        """Tell whether everything that it shows is trusted, and nothing else."""
        return {key.line() for key in self.shown} == {key.line() for key in self.trusted}

    def changed(self) -> list[tuple[HostKey, HostKey]]:
        """Return each trusted key that is contradicted, with what is shown in its place.

        A host that shows other kinds of keys only, and none that is trusted, has changed altogether.
        """
        shown = {key.kind: key for key in self.shown}
        pairs = [(old, shown[old.kind]) for old in self.trusted if old.kind in shown]
        different = [(old, new) for old, new in pairs if old.blob != new.blob]
        if different or pairs or self.is_new:
            return different
        return [(old, self.shown[0]) for old in self.trusted]


async def fetch(to: Destination, known_hosts: Path, config: str | None) -> Offer:
    """Ask a host for its keys, as nobody in particular. Raises TransportError."""
    options = ["-F", config] if config else []
    try:
        settings = await effective_settings(to, options)
        is_direct = settings.get("proxyjump", "none") == "none" and settings.get("proxycommand", "none") == "none"
        if is_direct:
            shown = await _scan(to, settings)
        else:
            shown = await _call(to, options)
    except ValueError as error:
        raise TransportError(to.node, f"ssh cannot use its configuration: {error}") from error
    except TimeoutError as error:
        raise NodeUnreachableError(to.node, f"{to.host} shows no host key within {SCAN_S:g} s") from error
    except OSError as error:
        raise TransportError(to.node, f"cannot run ssh's tools: {error}; install the OpenSSH client") from error
    return Offer(tuple(sorted(shown, key=_order)), known_keys(known_hosts, {key.name for key in shown}))


def known_keys(known_hosts: Path, names: set[str]) -> tuple[HostKey, ...]:
    """Return what our own file trusts of some names."""
    try:
        text = known_hosts.read_text()
    except OSError:
        return ()
    return tuple(sorted((key for key in _keys(text) if key.name in names), key=_order))


def keep(offer: Offer, known_hosts: Path) -> None:
    """Trust what a host shows, in place of what was trusted of it before."""
    names = {key.name for key in offer.shown}
    known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with known_hosts.with_name("known_hosts.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two nodes may be trusted at once
        before = known_hosts.read_text().splitlines() if known_hosts.exists() else []
        lines = [line for line in before if line.split(" ")[0] not in names]
        descriptor, temporary = tempfile.mkstemp(dir=known_hosts.parent, prefix=".known_hosts.")
        with os.fdopen(descriptor, "w") as file:
            file.write("".join(f"{line}\n" for line in [*lines, *(key.line() for key in offer.shown)]))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(known_hosts)


async def _scan(to: Destination, settings: Mapping[str, str]) -> list[HostKey]:
    host, port = settings.get("hostname", to.host), settings.get("port", "22")
    argv = ["ssh-keyscan", "-T", str(CONNECT_S), "-p", port, "-t", _TYPES, "--", host]
    done = await run_here(argv, SCAN_S)
    found = _keys(done.stdout.decode("utf-8", "replace"))
    if not found:
        said = done.stderr.decode("utf-8", "replace")
        error = failure(to, said, 255) if said.strip() else None
        raise error or NodeUnreachableError(
            to.node, f"{host} port {port} shows no host key; is its ssh server running?"
        )
    alias = settings.get("hostkeyalias", "none")
    return found if alias == "none" else [HostKey(alias, key.kind, key.blob) for key in found]


async def _call(to: Destination, options: Sequence[str]) -> list[HostKey]:
    """Ask through a proxy, which ssh-keyscan cannot: let ssh note the key in a file that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="orchestrate-") as folder:
        noted = Path(folder) / "known_hosts"
        settings = {
            "BatchMode": "yes", "StrictHostKeyChecking": "accept-new", "UserKnownHostsFile": str(noted),
            "GlobalKnownHostsFile": "/dev/null", "HashKnownHosts": "no", "PreferredAuthentications": "none",
            "ControlPath": "none", "ConnectTimeout": str(CONNECT_S), "LogLevel": "ERROR",
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        done = await run_here(["ssh", *options, *words, "-T", "--", to.host, "true"], SCAN_S)
        found = _keys(noted.read_text()) if noted.exists() else []
    if not found:
        raise failure(to, done.stderr.decode("utf-8", "replace"), done.exit_code)
    return found


def _keys(text: str) -> list[HostKey]:
    lines = [line.split() for line in text.splitlines() if not line.startswith(("#", "|", "@"))]
    return [HostKey(words[0], words[1], words[2]) for words in lines if len(words) >= 3]


def _order(key: HostKey) -> tuple[bool, str]:
    return (key.kind != "ssh-ed25519", key.kind)

"""Pure: why a helper does not serve, told apart by evidence, each cause with its mend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.helpers.compare import mismatches, program
from orchestrator.helpers.silence import place
from orchestrator.observed import HelperSeen, HelperSilent
from schemas.base import HelperName
from schemas.stack import Helper

PORTS: Mapping[int, str] = {
    11434: "ollama",
    8000: "vllm",
    8080: "llama.cpp",
    1234: "lm studio",
    7997: "infinity",
}
"""Where inference servers listen when nobody says otherwise. 8080 is also LocalAI's, mlx_lm.server's and TEI's."""

_LISTEN: Mapping[str, str] = {
    "ollama": "set OLLAMA_HOST=0.0.0.0 and restart it (Linux: `systemctl edit ollama`, [Service] "
    'Environment="OLLAMA_HOST=0.0.0.0"; macOS: `launchctl setenv OLLAMA_HOST 0.0.0.0`, then restart the app)',
    "lm studio": "turn on 'Serve on Local Network' in its developer settings, or `lms server start --bind 0.0.0.0`",
    "vllm": "start it with `--host 0.0.0.0`",
    "llama.cpp": "start it with `--host 0.0.0.0`",
    "infinity": "start it with `--host 0.0.0.0`",
}
_LISTEN_ANY = "start it with its LAN address, or with 0.0.0.0, as its host"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What else was found out about the machine of a helper that does not serve."""

    elsewhere: Mapping[int, HelperSeen] = field(default_factory=dict)
    """Inference servers at other ports of the same host."""
    is_host_up: bool | None = None
    """Some port of the host accepted or refused; None where no other one was tried."""
    is_open_on_its_loopback: bool | None = None
    """Whether the port is open on the machine's own 127.0.0.1; None where nobody could ask there."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause and what to do about it."""

    cause: str
    mend: str


def diagnose(
    name: HelperName, helper: Helper, seen: HelperSeen | HelperSilent, evidence: Evidence, *, is_macos: bool
) -> tuple[Finding, ...]:
    """Return what keeps a helper from serving, the likeliest first; empty where it serves as declared.

    `is_macos` is this machine's, from which the helper is called.
    """
    if isinstance(seen, HelperSeen):
        return tuple(_split(text) for text in mismatches(name, helper, seen))
    return tuple(_silent(name, helper, seen, evidence, is_macos=is_macos))


def _split(text: str) -> Finding:
    cause, _, mend = text.partition("; ")
    return Finding(cause, mend or "correct the file, or install it there")


def _silent(
    name: HelperName, helper: Helper, seen: HelperSilent, evidence: Evidence, *, is_macos: bool
) -> Iterator[Finding]:
    host, port = place(helper.url)
    match seen.kind:
        case "refused":
            yield from _refused(name, helper, evidence)
        case "no answer" if evidence.is_host_up or evidence.is_open_on_its_loopback:
            yield _firewall(f"{host} is up, but drops what is sent to port {port}", port)
        case "no answer":
            mend = f"check that it is on and that the address is right; `ping {host}` tells no more than that"
            yield Finding(f"nothing at {host} answers: it is off, has another address, or drops everything", mend)
        case "no route" if evidence.is_host_up or evidence.is_open_on_its_loopback:
            yield _firewall(f"{host} is up, but its firewall rejects port {port}", port)
        case "no route" if is_macos:
            yield Finding(
                f"macOS may keep this process from the local network, while ping and Terminal reach {host}",
                "System Settings > Privacy & Security > Local Network: allow the program that runs orchestrate; "
                "a gateway on a Mac runs under a LaunchDaemon, see `orchestrate node install`",
            )
        case "no route":
            yield Finding(
                f"there is no route to {host}", "check that it is on and in a network that this machine is in"
            )
        case "unknown host":
            yield Finding(f"no address is known for {host}", f"correct helpers.{name}.url, or write its IP address")
        case "tls":
            yield Finding(seen.reason, f"write http:// in helpers.{name}.url, or give the server a valid certificate")
        case "key":
            yield Finding(seen.reason, f"set helpers.{name}.key, best as ${{env:NAME}}")
        case "loading":
            yield Finding(seen.reason, "wait, then probe again")
        case "stranger":
            yield Finding(
                f"another program has port {port} of {host}", f"correct helpers.{name}.url, or move that program"
            )
        case _:
            yield Finding(seen.reason, f"see the log of the program on {host}")
    if seen.kind in ("stranger", "no answer", "no route", "broken"):
        yield from _elsewhere(name, helper, evidence)


def _refused(name: HelperName, helper: Helper, evidence: Evidence) -> Iterator[Finding]:
    host, port = place(helper.url)
    engine = PORTS.get(port, helper.api)
    listen = _LISTEN.get(engine, _LISTEN_ANY)
    if evidence.is_open_on_its_loopback:
        yield Finding(f"the server on {host} listens on 127.0.0.1:{port} only", listen)
        return
    others = list(_elsewhere(name, helper, evidence))
    yield from others
    if others:
        return
    if evidence.is_open_on_its_loopback is False:
        yield Finding(
            f"nothing listens on port {port} of {host}", f"start the server there, or correct helpers.{name}.url"
        )
        return
    yield Finding(
        f"{host} is up, and nothing that can be reached listens on its port {port}",
        f"on that machine, `curl http://127.0.0.1:{port}/` tells two cases apart: refused there too: start the server; "
        f"answered there: it listens on loopback only, so {listen}",
    )


def _elsewhere(name: HelperName, helper: Helper, evidence: Evidence) -> Iterator[Finding]:
    host, _ = place(helper.url)
    found = [(helper.api not in ("openai", seen.engine), port, seen) for port, seen in evidence.elsewhere.items()]
    for is_other_kind, port, seen in sorted(found, key=lambda entry: entry[:2]):
        yield Finding(
            f"{program(seen)} answers at {host}:{port}{' (another kind than declared)' if is_other_kind else ''}",
            f"if that is the one, write {host}:{port} in helpers.{name}.url",
        )


def _firewall(cause: str, port: int) -> Finding:
    windows = f"New-NetFirewallRule -DisplayName inference -Direction Inbound -Protocol TCP -LocalPort {port}"
    return Finding(
        cause,
        f"open it there for this network: Linux `sudo ufw allow {port}/tcp` or "
        f"`sudo firewall-cmd --add-port={port}/tcp --permanent && sudo firewall-cmd --reload`; Windows "
        f"`{windows} -Action Allow`",
    )

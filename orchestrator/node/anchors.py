"""Pure: who parents the supervisors of units, so that they outlive the login that started them.

On Linux a user manager with linger takes them (`systemd-run --user --scope`), where there is one: a plain double fork
is ended there with the login when logind is told to (KillUserProcesses), and counts against the session's limits.

On macOS a LaunchDaemon takes them where `orchestrate node install` has put one: since macOS 15 a process outside of a
login session may be refused connections to the local network, and system daemons are exempt. launchd listens on a
socket of the user and starts a shim for each connection to it, which hands over the shim's path on the first line and
the request behind it. Unverified: it was written from the manuals (launchd.plist(5), TN3179), without a Mac.

Everywhere else the supervisor's own double fork has to do.
"""

from __future__ import annotations

import plistlib
from dataclasses import replace

from orchestrator.node.site import Site

PLIST_LABEL = "dev.orchestrate.anchor"
PLIST_PATH = f"/Library/LaunchDaemons/{PLIST_LABEL}.plist"

# argv: socket, shim. Copies stdin to launchd's socket and the answer to stdout.
_RELAY = """import socket, sys
with socket.socket(socket.AF_UNIX) as relay:
    relay.connect(sys.argv[1])
    relay.sendall(sys.argv[2].encode() + b"\\n" + sys.stdin.buffer.readline())
    relay.shutdown(socket.SHUT_WR)
    while data := relay.recv(65536):
        sys.stdout.buffer.write(data)
"""
# what launchd runs: stdin and stdout are the connection
_SERVE = 'IFS= read -r shim && exec "$0" "$shim" start'


def verb_argv(site: Site, shim: str, verb: str) -> list[str]:
    """Return the command of a shim's verb on its node; only what stays behind needs another parent."""
    plain = [site.python, "-S", shim, verb]  # the shim needs the standard library only: half the time to start
    if verb != "start":
        return plain
    if site.systemd_run is not None:
        # ssh sessions without pam_systemd lack the variable by which the user manager is found
        manager = ["env", f"XDG_RUNTIME_DIR=/run/user/{site.uid}", site.systemd_run]
        return [*manager, "--user", "--scope", "--quiet", "--collect", "--", *plain]
    if site.anchor is not None:
        return [site.python, "-c", _RELAY, site.anchor, shim]
    return plain


def is_anchored(site: Site) -> bool:
    """Tell whether somebody else than the login parents what is started there."""
    return site.systemd_run is not None or site.anchor is not None


def unanchored(site: Site) -> Site:
    """Return a site where nobody else parents what is started, for when that one does not answer."""
    return replace(site, systemd_run=None, anchor=None)


def anchor_socket(uid: int) -> str:
    """Return where a LaunchDaemon of a user listens."""
    return f"/var/run/orchestrate.{uid}.sock"


def launch_daemon(site: Site) -> bytes:
    """Return the property list of a node's LaunchDaemon, which belongs to `PLIST_PATH`, owned by root."""
    return plistlib.dumps(
        {
            "Label": PLIST_LABEL,
            "UserName": site.user,
            "ProgramArguments": ["/bin/sh", "-c", _SERVE, site.python],
            "Sockets": {
                "Listeners": {
                    "SockPathName": anchor_socket(site.uid),
                    "SockPathMode": 0o600,
                    "SockPathOwner": site.uid,
                }
            },
            "inetdCompatibility": {"Wait": False},
            # the supervisor stays when the shim that forked it has answered
            "AbandonProcessGroup": True,
            "ProcessType": "Interactive",  # no throttling of what serves requests
            "EnvironmentVariables": {"HOME": site.home},
        },
        sort_keys=True,
    )

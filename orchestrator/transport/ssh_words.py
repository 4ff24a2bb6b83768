"""Pure: the words that ssh is called with, and what its own words mean when it fails."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.transport.base import (
    AccessRefusedError,
    HostKeyChangedError,
    HostKeyUnknownError,
    NodeRefusedError,
    NodeUnreachableError,
    TransportError,
)

SSH_FAILED = 255
"""What ssh exits with for its own failures, and for a remote program that exits with 255."""
CONNECT_S = 10
"""How long a TCP connection and the greeting may take; a machine on a LAN answers within milliseconds."""
ALIVE_INTERVAL_S = 5
ALIVE_COUNT = 3
"""A connection without an answer for ALIVE_INTERVAL_S * ALIVE_COUNT seconds is given up."""
PERSIST_S = 60
"""How long a connection without commands is kept for the next one."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _./=:,@+-")
_UNKNOWN_KEY = re.compile(r"host key is known for|Host key verification failed")
_CHANGED_KEY = re.compile(r"REMOTE HOST IDENTIFICATION HAS CHANGED|DNS SPOOFING DETECTED")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]+")
_OFFENDING = re.compile(r"Offending \S+ key in (.+):(\d+)\s*$", re.MULTILINE)
_REFUSED_KEY = re.compile(r"Permission denied \(|Too many authentication failures|No more authentication methods")
_NO_NAME = re.compile(r"(?:Could not resolve hostname|getaddrinfo) ([^:]*)")  # ssh, and ssh-keyscan
_NO_ROUTE = re.compile(r"No route to host|Host is down|Network is unreachable")
_NO_ANSWER = re.compile(r"timed out|Connection timed out during banner exchange", re.IGNORECASE)
_CLOSED = re.compile(r"Connection (closed|reset)|kex_exchange_identification|Broken pipe|not responding")


@dataclass(frozen=True, slots=True)
class Destination:
    """Whom ssh calls: `host` is a name, an address or an alias of the user's ssh configuration."""

    node: str
    host: str
    user: str | None = None

    @property
    def account(self) -> str:
        """Name the account as ssh does, for messages."""
        return f"{self.user}@{self.host}" if self.user else self.host


def base_options(known_hosts: Sequence[str]) -> list[str]:
    """Return the options of every connection: nobody is asked anything, nothing is forwarded, host keys are checked."""
    return [
        "-T", "-a", "-x",
        *_options(
            BatchMode="yes", ConnectTimeout=str(CONNECT_S), ConnectionAttempts="1",
            ServerAliveInterval=str(ALIVE_INTERVAL_S), ServerAliveCountMax=str(ALIVE_COUNT),
            StrictHostKeyChecking="yes", UpdateHostKeys="no", UserKnownHostsFile=" ".join(map(_quoted, known_hosts)),
            ClearAllForwardings="yes", PermitLocalCommand="no", RemoteCommand="none", LogLevel="ERROR",
        ),
    ]  # fmt: skip


def master_options(control_path: str) -> list[str]:
    """Return the options that share one connection between commands."""
    path = control_path.replace("%", "%%")
    return _options(ControlMaster="auto", ControlPersist=str(PERSIST_S), ControlPath=path)


def _options(**settings: str) -> list[str]:
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _quoted(path: str) -> str:
    return '"{}"'.format(path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"'))


def remote_command(argv: Sequence[str], token: str) -> str:
    """Return the one text that ssh gives to the account's shell.

    It makes a POSIX shell run `argv` between two lines on stderr: `<token> <pid of the shell>` before and
    `<token> exit <status>` after. By them ssh's own failures are told from the program's, and what was left behind can
    be found. A line with the token comes first on stdout too: what is before it was said by the account's start files.
    The shell of the account may be fish or csh, which read quotes in their own ways: it sees none of our characters but
    letters, digits and harmless signs.
    """
    script = f'echo {token}\necho "{token} $$" >&2\nset -- {shlex.join(argv)}\n"$@"\necho "{token} exit $?" >&2'
    code = "".join(
        chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in script.encode("utf-8", "surrogateescape")
    )
    return f"exec /bin/sh -c 'eval \"$(printf %b \"$0\")\"' '{code}'"


def kill_script(pid: int, token: str) -> str:
    """Return the shell text that ends what `remote_command` started, and nothing else that has got its number.

    It gets a second to clean up after itself.
    """
    return f"""case "$(ps -ww -o args= -p {pid} 2>/dev/null)" in *{token}*) ;; *) exit 0 ;; esac
kill -s TERM -- -{pid} 2>/dev/null || kill -s TERM {pid}
for each in 1 2 3 4 5 6 7 8 9 10; do
    kill -s 0 -- -{pid} 2>/dev/null || exit 0
    sleep 0.1
done
kill -s KILL -- -{pid} 2>/dev/null || kill -s KILL {pid}"""


@dataclass(frozen=True, slots=True)
class ErrorOutput:
    """What came on stderr, taken apart: `before` is ssh's own, `pid` the remote shell's, `exit_code` what it said."""

    before: bytes
    pid: int | None
    text: bytes
    exit_code: int | None


def parse_stderr(data: bytes, token: str) -> ErrorOutput:
    """Take the two lines of `remote_command` out of what came on stderr."""
    begin = re.search(rb"(?m)^%s (\d+)\n" % token.encode(), data)
    if begin is None:
        return ErrorOutput(data, None, b"", None)
    text, exit_code = split_end(data[begin.end() :], token)
    return ErrorOutput(data[: begin.start()], int(begin[1]), text, exit_code)


def split_end(data: bytes, token: str) -> tuple[bytes, int | None]:
    """Take the second line out of the rest of stderr, and return it with the exit code, None while it has not come."""
    end = re.search(rb"%s exit (\d+)\n" % token.encode(), data)
    return (data, None) if end is None else (data[: end.start()] + data[end.end() :], int(end[1]))


def fingerprint(blob: str) -> str | None:
    """Return the SHA256 fingerprint of a public key in base64, as OpenSSH writes it; None for something else."""
    try:
        digest = hashlib.sha256(base64.b64decode(blob, validate=True)).digest()
    except (binascii.Error, ValueError):
        return None
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def offending_line(text: str) -> tuple[str, int] | None:
    """Return the known-hosts file and line that a changed key contradicts, where ssh names them."""
    found = _OFFENDING.search(text)
    return (found[1], int(found[2])) if found else None


def failure(to: Destination, text: str, exit_code: int, trusted: str | None = None) -> TransportError:
    """Return what it means that ssh ended with `exit_code` and `text` before our command began.

    `trusted` is the fingerprint of the trusted key, where `offending_line` led to it.
    """
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "ssh said nothing")
    node = to.node
    if _CHANGED_KEY.search(text):
        offered = _FINGERPRINT.search(text)
        keys = f"trusted is {trusted or 'another one'}, shown is {offered[0] if offered else 'unknown'}"
        return HostKeyChangedError(
            node,
            f"its host key has changed: {keys}. Nothing was sent. If the machine was reinstalled, look at its key "
            f"there (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: orchestrate node trust {node} --replace",
        )
    if _UNKNOWN_KEY.search(text):
        return HostKeyUnknownError(
            node, f"the host key of {to.host} is not trusted yet; look at it with: orchestrate node trust {node}"
        )
    if _REFUSED_KEY.search(text):
        who = f"user {to.user}" if to.user else "your user name (nodes.NAME.user names another)"
        return AccessRefusedError(
            node,
            f"{to.host} takes none of your ssh keys for {who}: {last}. Add your public key there with: "
            f"ssh-copy-id {to.account}. A key with a passphrase must be in the ssh agent",
        )
    if found := _NO_NAME.search(text):
        return NodeUnreachableError(
            node,
            f"the name {found[1] or to.host} does not resolve ({last}); correct nodes.{node}.host or use an address",
        )
    if exit_code != SSH_FAILED:
        return NodeRefusedError(
            node, f"the shell of {to.account} does not run commands (exit code {exit_code}): {last}"
        )
    if _NO_ROUTE.search(text):
        return NodeUnreachableError(
            node,
            f"no way to {to.host}: {last}. Is it switched on, in this network and awake? On macOS, 'No route to host' "
            "while ping works means that this program may not use the local network: System Settings, Privacy & "
            "Security, Local Network",
        )
    if "Connection refused" in text:
        return NodeUnreachableError(
            node,
            f"{to.host} refuses ssh connections: {last}. Start its ssh server (on macOS: System Settings, General, "
            "Sharing, Remote Login), or correct the port in your ssh configuration",
        )
    if _NO_ANSWER.search(text):
        return NodeUnreachableError(
            node, f"{to.host} does not answer: {last}. Is it switched on and awake, and does a firewall drop port 22?"
        )
    if _CLOSED.search(text):
        return NodeUnreachableError(node, f"{to.host} closed the connection: {last}")
    return NodeRefusedError(node, f"ssh to {to.account} failed: {last}")


# $1 path, $2 mode, $3 size, $4 `durable` to wait for the disk. A connection that is lost ends the input early,
# which the size tells.
_PUSH = """umask 077
if [ -d "$1" ]; then echo 'push: Is a directory' >&2; exit 1; fi
folder=${1%/*}/
mkdir -p -- "$folder" || exit 1
new=$(mktemp "$folder.push.XXXXXXXX") || exit 1
trap 'rm -f -- "$new"' EXIT
trap 'exit 1' HUP INT TERM
trap '' PIPE
cat > "$new" || exit 1
if [ "$(wc -c < "$new")" -ne "$3" ]; then echo 'push: the transfer was cut short' >&2; exit 1; fi
chmod "$2" "$new" || exit 1
[ "$4" != durable ] || sync "$new" 2>/dev/null
mv -f -- "$new" "$1"
"""


def push_argv(path: str, mode: int, size: int, *, is_durable: bool) -> list[str]:
    """Return the command that takes a file of `size` bytes from its stdin and puts it at an absolute path.

    A large file is not made durable here: that can take a disk many minutes without a sign of life.
    """
    return ["sh", "-c", _PUSH, "push", path, f"{mode:o}", str(size), "durable" if is_durable else ""]

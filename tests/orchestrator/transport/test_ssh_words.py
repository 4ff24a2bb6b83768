"""Pure: what ssh is told and what its words mean; the texts are OpenSSH's own, of Linux and macOS."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.transport.base import (
    AccessRefusedError,
    HostKeyChangedError,
    HostKeyUnknownError,
    NodeRefusedError,
    NodeUnreachableError,
    TransportError,
)
from orchestrator.transport.ssh_words import (
    Destination,
    base_options,
    failure,
    fingerprint,
    offending_line,
    parse_stderr,
    remote_command,
)

TO = Destination("mono", "mono.lan", "ann")
CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
The fingerprint for the ED25519 key sent by the remote host is
SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDw3W2vKDh8wO5Zt4c.
Please contact your system administrator.
Offending ED25519 key in /home/ann/known hosts:3
Host key for mono.lan has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (
            CHANGED,
            HostKeyChangedError,
            "trusted is SHA256:old, shown is SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDw3W2vKDh8wO5Z",
        ),
        (
            "No ED25519 host key is known for mono.lan and you have requested strict checking.\r\n",
            HostKeyUnknownError,
            "orchestrate node trust mono",
        ),
        ("ann@mono.lan: Permission denied (publickey,password).\r\n", AccessRefusedError, "ssh-copy-id ann@mono.lan"),
        ("Received disconnect: Too many authentication failures\n", AccessRefusedError, "user ann"),
        (
            "ssh: Could not resolve hostname mono.lan: nodename nor servname provided, or not known\r\n",
            NodeUnreachableError,
            "correct nodes.mono.host",
        ),
        ("getaddrinfo mono.lan: Name or service not known\n", NodeUnreachableError, "correct nodes.mono.host"),
        ("ssh: connect to host mono.lan port 22: No route to host\r\n", NodeUnreachableError, "Local Network"),
        ("ssh: connect to host mono.lan port 22: Host is down\n", NodeUnreachableError, "switched on"),
        ("ssh: connect to host mono.lan port 22: Connection refused\n", NodeUnreachableError, "Remote Login"),
        ("ssh: connect to host mono.lan port 22: Operation timed out\n", NodeUnreachableError, "firewall"),
        ("ssh: connect to host mono.lan port 22: Connection timed out\n", NodeUnreachableError, "firewall"),
        (
            "kex_exchange_identification: Connection closed by remote host\nConnection closed by 10.0.0.1 port 22\n",
            NodeUnreachableError,
            "closed the connection",
        ),
        ("/home/ann/.ssh/config: line 3: Bad configuration option: nonsense\n", NodeRefusedError, "line 3"),
        ("", NodeRefusedError, "ssh said nothing"),
    ],
)
def test_every_failure_says_what_to_do_next(text: str, kind: type[TransportError], words: str) -> None:
    error = failure(TO, text, 255, "SHA256:old")

    assert type(error) is kind
    assert str(error).startswith("mono: ")
    assert words in str(error)


def test_account_without_a_shell_is_named() -> None:
    error = failure(TO, "This account is currently not available.\n", 1)

    assert "the shell of ann@mono.lan does not run commands (exit code 1): This account is" in str(error)


def test_place_of_the_contradicted_key_is_read_with_blanks_in_it() -> None:
    assert offending_line(CHANGED) == ("/home/ann/known hosts", 3)
    assert offending_line("nothing") is None


def test_fingerprint_is_openssh_s(tmp_path_factory: pytest.TempPathFactory) -> None:
    key = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    said = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True).stdout

    assert fingerprint(key.with_suffix(".pub").read_text().split()[1]) == said.split()[1]
    assert fingerprint("no base64!") is None


def test_nobody_is_asked_and_nothing_is_accepted_or_forwarded() -> None:
    options = base_options(["/s/known hosts", "/100%/x"])

    for needed in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ClearAllForwardings=yes", "PermitLocalCommand=no"):
        assert needed in options
    assert 'UserKnownHostsFile="/s/known hosts" "/100%%/x"' in options
    assert {"-a", "-x", "-T"} <= set(options)


WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), max_size=4)


@given(words=WORDS, text=st.binary(max_size=50), exit_code=st.integers(0, 255))
def test_command_comes_through_a_shell_and_its_words_are_told_apart(
    words: list[str], text: bytes, exit_code: int
) -> None:
    """Here the local sh plays the account's; what it is given has no character that fish or csh would change."""
    script = 'printf "%s\\0" "$@"; cat >&2; exit "$EXIT"'
    command = remote_command(["sh", "-c", script, "sh", *words], "0123456789abcdef")
    assert not set(command) & set("!`~*?[]{}<>|&;#^\n\t")

    done = subprocess.run(
        ["sh", "-c", command],
        input=text,
        capture_output=True,
        check=False,
        env={"EXIT": str(exit_code), "PATH": "/bin:/usr/bin"},
    )

    expected = b"".join(word.encode() + b"\0" for word in words) or b"\0"
    assert done.stdout == b"0123456789abcdef\n" + expected
    seen = parse_stderr(b"ssh: a banner\r\n" + done.stderr, "0123456789abcdef")
    assert (seen.before, seen.text, seen.exit_code) == (b"ssh: a banner\r\n", text, exit_code)
    assert seen.pid is not None

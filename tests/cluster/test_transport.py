"""I/O: commands and files over a real ssh."""

from __future__ import annotations

import asyncio
import contextlib
import filecmp
import os
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.transport.base import (
    AccessRefusedError,
    CommandTimeoutError,
    HostKeyChangedError,
    HostKeyUnknownError,
    NodeDiskFullError,
    NodeRefusedError,
    NodeUnreachableError,
    TransportError,
)
from orchestrator.transport.ssh import SshTransport
from orchestrator.transport.ssh_words import Destination
from tests.cluster.lab import Host, Lab, poll

STATE = 'printf %s "$ORCHESTRATE_STATE"'


async def test_run_passes_input_and_returns_both_outputs_and_the_exit_code(one_host: Host) -> None:
    done = await one_host.transport().run(["sh", "-c", "cat; echo oops >&2; exit 3"], input=b"in", timeout_s=60)

    assert (done.exit_code, done.stdout, done.stderr) == (3, b"in", b"oops\n")


async def test_several_hosts_are_asked_at_once(lab: Lab) -> None:
    hosts = [lab.add(name) for name in ("one", "two", "three")]

    answers = await asyncio.gather(*(host.transport().run(["sh", "-c", STATE], timeout_s=60) for host in hosts))

    assert [answer.stdout.decode() for answer in answers] == [str(host.state) for host in hosts]


async def test_commands_share_one_connection(one_host: Host) -> None:
    transport = one_host.transport()
    before = one_host.sshd_log().count("Accepted publickey")

    await asyncio.gather(*(transport.run(["true"], timeout_s=60) for _ in range(12)))

    assert one_host.sshd_log().count("Accepted publickey") - before <= 1


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
TRICKY = st.sampled_from(
    [
        "",
        "-n",
        "--",
        "-e x",
        "a\nb\n",
        "\n",
        "'",
        '"',
        "\\",
        "\\\\",
        "\\0134",
        "!!",
        "$HOME",
        "$(id)",
        "`id`",
        "*",
        "~",
        "ü 🙂",
    ]
)


@given(words=st.lists(WORDS | TRICKY, max_size=6), data=st.binary(max_size=200))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arguments_and_input_arrive_unchanged(one_host: Host, words: list[str], data: bytes) -> None:
    script = 'for word; do printf "%s\\0" "$word"; done; cat'

    done = asyncio.run(one_host.transport().run(["sh", "-c", script, "sh", *words], input=data, timeout_s=60))

    assert done.stdout == b"".join(word.encode() + b"\0" for word in words) + data
    assert (done.exit_code, done.stderr) == (0, b"")


@pytest.mark.parametrize("exit_code", [0, 1, 127, 255])
async def test_a_program_that_exits_with_ssh_s_own_code_is_no_failure_of_ssh(one_host: Host, exit_code: int) -> None:
    done = await one_host.transport().run(["sh", "-c", f"exit {exit_code}"], timeout_s=60)

    assert done.exit_code == exit_code


async def test_missing_program_answers_as_a_shell_does(one_host: Host) -> None:
    done = await one_host.transport().run(["no-such-program"], timeout_s=60)

    assert done.exit_code == 127
    assert b"no-such-program" in done.stderr


async def test_a_word_of_the_shell_is_a_program_s_name(one_host: Host) -> None:
    done = await one_host.transport().run(["A=b", "if"], timeout_s=60)

    assert done.exit_code == 127


async def test_what_the_account_s_start_files_print_is_not_the_program_s(lab: Lab) -> None:
    host = lab.add("one")
    (host.home / ".bashrc").write_text("printf 'Welcome!'; echo trouble >&2\n")
    transport = host.transport()

    done = await transport.run(["sh", "-c", "echo out; echo err >&2"], timeout_s=60)
    async with transport.stream(["echo", "line"]) as stream:
        lines = [line async for line in stream]

    assert (done.stdout, done.stderr, lines) == (b"out\n", b"err\n", [b"line\n"])


# -- nobody answers ----------------------------------------------------------------------------------------------------


async def test_unknown_host_key_names_the_command_that_trusts_it(lab: Lab) -> None:
    host = lab.add("one")
    lab.distrust()

    with pytest.raises(HostKeyUnknownError, match=r"one: .*not trusted yet.*orchestrate node trust one"):
        await host.transport().run(["true"], timeout_s=60)


async def test_changed_host_key_says_both_fingerprints(lab: Lab) -> None:
    host = lab.add("one")
    before = host.fingerprint
    host.stop_sshd()
    host.new_host_key()
    host.start_sshd()

    with pytest.raises(HostKeyChangedError) as caught:
        await host.transport().run(["true"], timeout_s=60)

    assert before in str(caught.value)
    assert host.fingerprint in str(caught.value)
    assert "orchestrate node trust one --replace" in str(caught.value)


async def test_refused_key_names_the_user(lab: Lab) -> None:
    host = lab.add("one")
    lab.key.with_suffix(".pub").write_text("")

    with pytest.raises(AccessRefusedError, match="none of your ssh keys for user nobody"):
        await host.transport(user="nobody").run(["true"], timeout_s=60)


async def test_server_that_is_down_is_unreachable_and_answers_again_when_it_is_up(lab: Lab) -> None:
    host = lab.add("one")
    transport = host.transport()
    await transport.run(["true"], timeout_s=60)
    host.stop_sshd()

    with pytest.raises(NodeUnreachableError, match=r"refuses ssh connections|lost|closed"):
        await transport.run(["true"], timeout_s=60)
    with pytest.raises(NodeUnreachableError, match=r"refuses ssh connections.*Start its ssh server"):
        await transport.run(["true"], timeout_s=60)

    host.start_sshd()
    assert (await transport.run(["echo", "back"], timeout_s=60)).stdout == b"back\n"


async def test_name_that_does_not_resolve_names_the_key_to_correct(lab: Lab) -> None:
    transport = SshTransport(Destination("one", "no-such-host.invalid"), lab.known_hosts, str(lab.ssh_config))

    with pytest.raises(NodeUnreachableError, match=r"no-such-host\.invalid does not resolve.*nodes\.one\.host"):
        await transport.run(["true"], timeout_s=60)


async def test_bad_ssh_configuration_is_named(lab: Lab) -> None:
    lab.ssh_config.write_text("Nonsense yes\n")

    with pytest.raises(NodeRefusedError, match=r"configuration: .*ssh_config"):
        await lab.add("one").transport().run(["true"], timeout_s=60)


async def test_host_that_is_off_delays_nobody_else(lab: Lab) -> None:
    one, two = lab.add("one"), lab.add("two")
    one.cut()

    async def is_first() -> bool:
        off = asyncio.create_task(one.transport().run(["true"], timeout_s=60))
        assert (await two.transport().run(["echo", "two"], timeout_s=60)).stdout == b"two\n"
        is_waiting = not off.done()
        with pytest.raises(NodeUnreachableError):
            await off
        return is_waiting

    # A login may take seconds on a busy machine, and that a host is off is known after some seconds as well.
    for _ in range(5):
        if await is_first():
            return
    pytest.fail("who asked the other host has waited for the one that is off")


async def test_those_who_wait_for_a_connection_share_its_failure(lab: Lab) -> None:
    transport = lab.add("one").transport()
    lab.distrust()

    answers = await asyncio.gather(*(transport.run(["true"], timeout_s=60) for _ in range(20)), return_exceptions=True)

    assert {type(answer) for answer in answers} == {HostKeyUnknownError}
    assert lab.hosts["one"].sshd_log().count("Connection from") <= 4


# -- time runs out -----------------------------------------------------------------------------------------------------


async def test_command_that_hangs_is_killed_there_too(lab: Lab) -> None:
    host = lab.add("one")
    transport = host.transport()
    await transport.run(["true"], timeout_s=60)  # logged in before the time counts
    with pytest.raises(CommandTimeoutError, match="one: sh was given up after 3 s"):
        await transport.run(["sh", "-c", "sleep 1234 & sleep 1234"], timeout_s=3)

    await asyncio.to_thread(poll, lambda: "sleep 1234" not in commands(host))
    assert (await transport.run(["echo", "next"], timeout_s=60)).stdout == b"next\n"


async def test_cancelled_command_is_killed_there_too(lab: Lab) -> None:
    host = lab.add("one")
    running = asyncio.create_task(host.transport().run(["sleep", "1234"], timeout_s=100))
    await asyncio.to_thread(poll, lambda: "sleep 1234" in commands(host))

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(poll, lambda: "sleep 1234" not in commands(host))


async def test_link_cut_mid_command_ends_at_the_deadline_and_poisons_nothing(lab: Lab) -> None:
    host = lab.add("one")
    transport = host.transport()
    await transport.run(["true"], timeout_s=60)  # logged in before the time counts
    running = asyncio.create_task(transport.run(["sleep", "1234"], timeout_s=10))
    await asyncio.to_thread(poll, lambda: "sleep 1234" in commands(host))

    host.cut()
    with pytest.raises((CommandTimeoutError, NodeUnreachableError)):
        await running
    host.restore()

    assert (await transport.run(["echo", "back"], timeout_s=60)).stdout == b"back\n"


async def test_link_cut_for_long_is_noticed_by_a_stream(lab: Lab) -> None:
    host = lab.add("one")
    async with host.transport().stream(["sh", "-c", "echo here; exec cat"]) as stream:
        lines = aiter(stream)
        assert await anext(lines) == b"here\n"
        host.cut()
        assert [line async for line in lines] == []
        with pytest.raises(NodeUnreachableError, match="the connection was lost"):
            await stream.wait()


async def test_shared_connection_that_hangs_is_given_up(lab: Lab) -> None:
    """A process of ssh that is stopped answers nobody, and its socket is still there."""
    host = lab.add("one")
    await host.transport().run(["true"], timeout_s=60)
    pid = master_of(host)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert (await host.transport().run(["echo", "new"], timeout_s=60)).stdout == b"new\n"
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_shared_connection_that_was_killed_is_replaced(lab: Lab) -> None:
    host = lab.add("one")
    transport = host.transport()
    await transport.run(["true"], timeout_s=60)
    os.kill(master_of(host), signal.SIGKILL)

    assert (await transport.run(["echo", "new"], timeout_s=60)).stdout == b"new\n"


async def test_reboot_is_survived(lab: Lab) -> None:
    host = lab.add("one")
    transport = host.transport()
    await transport.run(["true"], timeout_s=60)
    host.reboot()

    with contextlib.suppress(NodeUnreachableError):  # the old connection may still be asked once
        await transport.run(["true"], timeout_s=60)
    assert (await transport.run(["echo", "up"], timeout_s=60)).stdout == b"up\n"


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_stream_keeps_input_open_and_the_end_of_stderr(one_host: Host) -> None:
    script = "read -r line; echo got $line; cat; echo first >&2; echo why >&2; exit 4"
    async with one_host.transport().stream(["sh", "-c", script], input=b"one\n") as stream:
        lines = aiter(stream)
        assert await anext(lines) == b"got one\n"
        await stream.write(b"two\n")
        assert await anext(lines) == b"two\n"
        await stream.close_input()
        assert [line async for line in lines] == []
        assert await stream.wait() == 4
        assert stream.error_tail() == "first\nwhy"


async def test_leaving_a_stream_kills_the_command_there(lab: Lab) -> None:
    host = lab.add("one")
    async with host.transport().stream(["sleep", "1234"]):
        await asyncio.to_thread(poll, lambda: "sleep 1234" in commands(host))

    await asyncio.to_thread(poll, lambda: "sleep 1234" not in commands(host))


# -- files -------------------------------------------------------------------------------------------------------------


async def test_push_makes_folders_and_replaces_atomically(one_host: Host) -> None:
    path = one_host.state / "a b" / "it's" / "file"
    transport = one_host.transport()
    await transport.push(bytes(range(256)), str(path), mode=0o600)
    before = path.open("rb")

    await transport.push(b"two", str(path), mode=0o640)

    with before:
        assert before.read() == bytes(range(256))
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["file"]


async def test_large_file_arrives_whole_with_progress(one_host: Host, tmp_path: Path) -> None:
    source, target = tmp_path / "large", one_host.state / "large"
    with source.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1024 * 1024))
    seen: list[int] = []

    await one_host.transport().push_file(str(source), str(target), mode=0o644, report=seen.append)

    assert filecmp.cmp(source, target, shallow=False)
    assert seen == sorted(seen)
    assert seen[-1] == source.stat().st_size
    assert len(seen) > 10


async def test_push_onto_a_directory_names_the_path_and_leaves_nothing(one_host: Host) -> None:
    (one_host.state / "folder").mkdir()

    with pytest.raises(TransportError, match=r"one: cannot write .*/folder: Is a directory"):
        await one_host.transport().push(b"x", str(one_host.state / "folder"), mode=0o600)

    assert list((one_host.state / "folder").iterdir()) == []


async def test_push_without_permission_says_so(one_host: Host) -> None:
    with pytest.raises(TransportError, match="cannot write /proc/version: "):
        await one_host.transport().push(b"x", "/proc/version", mode=0o600)


async def test_full_disk_is_told_and_nothing_half_written_is_left(lab: Lab, tmp_path: Path) -> None:
    host = lab.add("one")
    small = host.state / "small"
    host.mount_small_disk(small, "256k")
    source = tmp_path / "large"
    source.write_bytes(os.urandom(8 * 1024 * 1024))
    transport = host.transport()

    with pytest.raises(NodeDiskFullError, match=r"cannot write .*/small/x: No space left on device"):
        await transport.push(source.read_bytes(), str(small / "x"), mode=0o600)
    with pytest.raises(NodeDiskFullError, match=r"No space left on device"):
        await transport.push_file(str(source), str(small / "x"), mode=0o600, report=lambda _: None)

    assert (await transport.run(["ls", "-A", str(small)], timeout_s=60)).stdout == b""


async def test_transfer_that_is_cut_leaves_the_file_as_it_was(lab: Lab, tmp_path: Path) -> None:
    host = lab.add("one")
    source, target = tmp_path / "large", host.state / "large"
    target.write_text("before")
    with source.open("wb") as file:
        file.truncate(4 << 30)
    begun = asyncio.Event()
    sending = asyncio.create_task(
        host.transport().push_file(str(source), str(target), mode=0o600, report=lambda _: begun.set())
    )
    await begun.wait()

    host.stop_sshd()

    with pytest.raises(TransportError):
        await sending
    assert target.read_text() == "before"
    await asyncio.to_thread(poll, lambda: [each.name for each in host.state.iterdir()] == ["large"])


def commands(host: Host) -> set[str]:
    """Return the command lines of everything that runs on a host."""
    found = set()
    for pid in host.pids():
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip())
    return found


def master_of(host: Host) -> int:
    """Return the pid of the ssh that holds the shared connection to a host."""
    argv = ["ssh", "-F", str(host.lab.ssh_config), "-O", "check", "-S", str(host.transport().socket), host.address]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
    return int(said.partition("pid=")[2].partition(")")[0])

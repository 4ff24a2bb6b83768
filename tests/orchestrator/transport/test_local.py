"""I/O: commands and files on the machine we are on."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.transport.base import CommandTimeoutError, NodeTransport, TransportError
from orchestrator.transport.local import LocalTransport
from orchestrator.transport.processes import LINE_LIMIT_BYTES
from tests.orchestrator.node.harness import eventually, is_running, processes_of

HERE: NodeTransport = LocalTransport("here")
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
ECHO = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"


async def until_gone(pid: int) -> None:
    """Wait until a process does not run any more."""
    await asyncio.to_thread(eventually, lambda: not is_running(pid))


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


async def test_a_file_is_read_and_one_that_is_missing_or_no_file_has_no_content(tmp_path: Path) -> None:
    (tmp_path / "routes.json").write_bytes(b"{}\n")

    assert await HERE.read(str(tmp_path / "routes.json"), timeout_s=20) == b"{}\n"
    assert await HERE.read(str(tmp_path / "nothing"), timeout_s=20) is None
    assert await HERE.read(str(tmp_path), timeout_s=20) is None


async def test_run_passes_input_and_returns_both_outputs_and_the_exit_code() -> None:
    done = await HERE.run(["sh", "-c", "cat; echo oops >&2; exit 3"], input=b"in", timeout_s=20)

    assert (done.exit_code, done.stdout, done.stderr) == (3, b"in", b"oops\n")


async def test_missing_program_answers_as_a_shell_would() -> None:
    done = await HERE.run(["no-such-program"], timeout_s=20)

    assert done.exit_code == 127
    assert b"no-such-program" in done.stderr


@settings(max_examples=10, deadline=None)
@given(words=st.lists(WORDS, max_size=5))
def test_arguments_arrive_unchanged(words: list[str]) -> None:
    done = asyncio.run(HERE.run([sys.executable, "-S", "-X", "utf8", "-c", ECHO, *words], timeout_s=20))

    assert done.stdout == b"\0".join(word.encode() for word in words)


def tree(pids: Path) -> list[str]:
    """Return a command that leaves the pids of two processes in a file and never ends."""
    place = shlex.quote(str(pids))
    return ["sh", "-c", f"sleep 1000 & echo $$ $! > {place}.part; mv {place}.part {place}; wait"]


async def pids_in(path: Path) -> list[int]:
    text = await asyncio.to_thread(eventually, lambda: path.exists() and path.read_text())
    return [int(word) for word in str(text).split()]


async def left_when_given_up(folder: Path, command: Callable[[Path], list[str]]) -> list[int]:
    """Run a command that never ends and writes a file with pids, until it is given up; return the pids.

    One that had no time to write them, as on a busy machine, is run again and gets more.
    """
    for timeout_s in (0.5, 5.0, 50.0):
        pids = folder / f"pids-{timeout_s}"
        with pytest.raises(CommandTimeoutError, match="here: sh was given up after"):
            await HERE.run(command(pids), timeout_s=timeout_s)
        if pids.exists():
            return [int(word) for word in pids.read_text().split()]
    raise AssertionError("it wrote no pids")


async def test_timeout_kills_the_whole_command(tmp_path: Path) -> None:
    for pid in await left_when_given_up(tmp_path, tree):
        await until_gone(pid)


async def test_cancellation_kills_the_whole_command(tmp_path: Path) -> None:
    running = asyncio.create_task(HERE.run(tree(tmp_path / "pids"), timeout_s=100))
    pids = await pids_in(tmp_path / "pids")

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    for pid in pids:
        await until_gone(pid)


async def test_cancellation_at_any_moment_of_the_start_leaves_nothing(tmp_path: Path) -> None:
    """asyncio needs several rounds of the loop to connect the pipes of a process that runs already."""
    for rounds in range(12):
        place = tmp_path / str(rounds)
        running = asyncio.create_task(HERE.run([*tree(place), str(place)], timeout_s=100))
        for _ in range(rounds):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    # Killed is not gone yet: those that were not our children are reaped by somebody else.
    await asyncio.to_thread(eventually, lambda: processes_of(tmp_path) == [])


async def test_timeout_kills_what_the_leader_left_behind(tmp_path: Path) -> None:
    def command(pids: Path) -> list[str]:
        return ["sh", "-c", f"sleep 1000 & echo $! > {pids}.part; mv {pids}.part {pids}"]

    for pid in await left_when_given_up(tmp_path, command):
        await until_gone(pid)


async def test_process_that_left_the_group_and_holds_the_output_is_not_waited_for(tmp_path: Path) -> None:
    def command(pids: Path) -> list[str]:
        return ["sh", "-c", f"setsid sh -c 'echo $$ > {pids}.part; mv {pids}.part {pids}; exec sleep 1000' & wait"]

    for pid in await left_when_given_up(tmp_path, command):
        os.kill(pid, signal.SIGKILL)


async def test_push_makes_folders_and_replaces_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    await HERE.push(b"one", str(path), mode=0o600)
    before = path.open("rb")

    await HERE.push(b"two", str(path), mode=0o640)

    with before:
        assert before.read() == b"one"  # a reader of the old file is not disturbed
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(path.parent) == ["file"]


async def test_push_that_fails_names_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()

    with pytest.raises(TransportError, match=rf"here: cannot write {tmp_path}/file: Is a directory"):
        await HERE.push(b"x", str(tmp_path / "file"), mode=0o600)

    assert names(tmp_path) == ["file"]


async def test_file_is_copied_with_progress(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "a" / "target"
    source.write_bytes(os.urandom(9 * 1024 * 1024))
    seen: list[int] = []

    await HERE.push_file(str(source), str(target), mode=0o640, report=seen.append)

    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o640
    assert seen == [4 * 1024 * 1024, 8 * 1024 * 1024, 9 * 1024 * 1024]


async def test_copy_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    with source.open("wb") as file:
        file.truncate(1 << 34)
    begun = asyncio.Event()
    copying = asyncio.create_task(
        HERE.push_file(str(source), str(folder / "target"), mode=0o600, report=lambda _: begun.set())
    )
    await begun.wait()

    copying.cancel()

    with pytest.raises(asyncio.CancelledError):
        await copying
    assert names(folder) == []


async def test_stream_keeps_the_end_of_stderr() -> None:
    async with HERE.stream(["sh", "-c", "yes filler | head -n 15000 >&2; echo why >&2; exit 2"]) as stream:
        assert [line async for line in stream] == []
        assert await stream.wait() == 2
        await asyncio.to_thread(eventually, lambda: stream.error_tail().endswith("filler\nwhy"))
        assert len(stream.error_tail()) < 20_000


async def test_stream_keeps_input_open_and_gives_lines_as_they_come() -> None:
    script = "read -r line; echo got $line; cat; exit 4"
    async with HERE.stream(["sh", "-c", script], input=b"one\n") as stream:
        lines = aiter(stream)
        assert await anext(lines) == b"got one\n"
        await stream.close_input()
        assert [line async for line in lines] == []
        assert await stream.wait() == 4


async def test_stream_gives_long_lines_in_pieces_and_a_last_line_without_an_end() -> None:
    size = LINE_LIMIT_BYTES * 2 + 10
    async with HERE.stream([sys.executable, "-c", f"print('x' * {size}); print('end', end='')"]) as stream:
        pieces = [piece async for piece in stream]

    assert b"".join(pieces) == b"x" * size + b"\nend"
    assert pieces[-1] == b"end"


async def test_leaving_a_stream_kills_the_whole_command(tmp_path: Path) -> None:
    async with HERE.stream(tree(tmp_path / "pids")):
        pids = await pids_in(tmp_path / "pids")

    for pid in pids:
        await until_gone(pid)


async def test_stream_of_a_missing_program_is_an_error() -> None:
    with pytest.raises(TransportError, match="here: cannot run no-such-program: No such file or directory"):
        async with HERE.stream(["no-such-program"]):
            pass


async def test_command_that_was_killed_has_a_negative_exit_code() -> None:
    async with HERE.stream(["sh", "-c", "echo $$; exec sleep 1000"]) as stream:
        os.kill(int(await anext(aiter(stream))), signal.SIGTERM)
        assert await stream.wait() == -signal.SIGTERM

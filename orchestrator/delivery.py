"""I/O: brings the files that a stack is composed from to the node of its gateway, where that is another machine."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from orchestrator.cluster import ReachedNode
from orchestrator.expand import Desired
from orchestrator.snapshots import Files, files_digest
from schemas.base import StackName
from schemas.keys import Keys, read_keys, write_keys
from schemas.problems import ConfigurationError
from schemas.routes import Routes

_REFERENCE = re.compile(rb"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


async def deliver(node: ReachedNode, stack: StackName, files: Files) -> str:
    """Put the composed files into a place of their own, named by their content, and return it.

    A file of keys is none of them: see `deliver_keys`. Raises `TransportError`.
    """
    directories = await node.directories()
    place = PurePosixPath(directories.stack(stack)) / "files" / files_digest(files)
    pushes = (node.transport.push(content, str(place / name), mode=0o600) for name, content in files.items())
    await asyncio.gather(*pushes)
    return str(place)


async def deliver_keys(node: ReachedNode, desired: Desired) -> str:
    """Put the stack's keys where its gateway looks for them on another machine; return that place.

    It is one place, whatever files are in force: a rollback brings no revoked key back. Without a keys file there are
    no keys; a broken one leaves those from before in force. Raises `TransportError`, and `OSError` where the file
    cannot be read.
    """
    place = str((await node.directories()).keys(desired.stack))
    data = await asyncio.to_thread(keys_of, desired)
    while True:
        with contextlib.suppress(ConfigurationError, UnicodeDecodeError):  # composing the files tells what is wrong
            read_keys(data.decode(), desired.keys_file or "")
            await node.transport.push(data, place, mode=0o600)
        # Who has changed the file meanwhile may have been faster: what was read before must not be what stays.
        before, data = data, await asyncio.to_thread(keys_of, desired)
        if data == before:
            return place


def keys_of(desired: Desired) -> bytes:
    """Return what is in the keys file, or a file without keys where there is none; raises `OSError`."""
    if desired.keys_file is not None:
        with contextlib.suppress(FileNotFoundError):
            return (Path(desired.owner) / desired.keys_file).read_bytes()
    return write_keys(Keys()).encode()


def is_delivered(routes: Routes | None, files: Files) -> TypeGuard[Routes]:
    """Tell whether routes name the place of just these files."""
    return routes is not None and routes.conf is not None and PurePosixPath(routes.conf).name == files_digest(files)


def referred_variables(files: Files, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that the files name as `${env:NAME}` and that are set here."""
    names = {name.decode() for content in files.values() for name in _REFERENCE.findall(content)}
    return {name: environ[name] for name in sorted(names & environ.keys())}

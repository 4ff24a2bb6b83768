"""I/O: tells when files change: by notification at once, and by looking at them once a second.

Looking catches what notifications miss: the targets of symbolic links, file systems without notifications, and a
directory that was removed and made again (its new inode has no watch on it).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

log = logging.getLogger(__name__)

DEBOUNCE_MS = 200
"""The longest that changes are gathered."""
STEP_MS = 25
"""Gathering ends when this long nothing changed."""
LOOK_MS = 1000
RESTART_S = 0.5
ABSENT_S = 0.2

Signature = tuple[tuple[str, int, int, int], ...]


async def watch_files(
    directory: Path, pattern: str, *, is_recursive: bool, on_change: Callable[[], None], on_restart: Callable[[], None]
) -> None:
    """Call `on_change` whenever files of a directory change; runs until it is cancelled.

    `pattern` is a glob for file names. The directory may be missing, and may be removed and made again. `on_restart`
    is called when watching failed and begins anew.
    """
    while True:
        try:
            await _watch_inode(directory, pattern, is_recursive=is_recursive, on_change=on_change)
        except OSError:
            log.warning("watching failed, trying again: directory=%s", directory, exc_info=True)
            on_restart()
            await asyncio.sleep(RESTART_S)
        except Exception:
            log.exception("watching failed, trying again: directory=%s", directory)
            on_restart()
            await asyncio.sleep(RESTART_S)


async def _watch_inode(directory: Path, pattern: str, *, is_recursive: bool, on_change: Callable[[], None]) -> None:
    """Watch one directory as long as it is the same one."""
    from watchfiles import Change, awatch

    def concerns(_: Change, path: str) -> bool:
        return Path(path).match(pattern)

    inode = _inode(directory)
    if inode is None:
        await asyncio.sleep(ABSENT_S)
        return
    # Before the first call: what no notification tells may change while the files are read because of it.
    seen = await asyncio.to_thread(_signature, directory, pattern, is_recursive=is_recursive)
    changes = awatch(
        directory,
        watch_filter=concerns,
        debounce=DEBOUNCE_MS,
        step=STEP_MS,
        rust_timeout=LOOK_MS,
        yield_on_timeout=True,
        recursive=is_recursive,
    )
    on_change()
    async with aclosing(changes):
        async for changed in changes:
            signature = await asyncio.to_thread(_signature, directory, pattern, is_recursive=is_recursive)
            if changed or signature != seen:
                on_change()
            seen = signature
            if _inode(directory) != inode:
                return


def _inode(directory: Path) -> int | None:
    try:
        return directory.stat().st_ino
    except OSError:
        return None


def _signature(directory: Path, pattern: str, *, is_recursive: bool) -> Signature:
    """Return what changes when a file does; symbolic links are followed."""
    found = directory.rglob(pattern) if is_recursive else directory.glob(pattern)
    signature = []
    for path in sorted(found):
        try:
            state = path.stat()
        except OSError:
            signature.append((str(path), 0, 0, 0))
        else:
            signature.append((str(path), state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(signature)

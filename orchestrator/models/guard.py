"""I/O: `guard.py <command>` runs a tool, and ends its whole process group when stdin ends: the caller is gone.

A caller that is killed cannot end its tools itself. One that hangs, in a download that stands still say, would keep the
store's lock, and with it the next installer waiting. Stdlib only; run as the leader of a process group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Return the tool's exit code; as shells do, 128 and its number where a signal ended it."""
    threading.Thread(target=_watch, daemon=True).start()
    # close_fds=False: the tool inherits the lock too, so that nobody enters the store before it is gone.
    code = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL, close_fds=False)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())

"""I/O: fetch a snapshot of a hub repository, in a process of its own that can be killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.models.errors import DownloadError
from orchestrator.models.sources import HubSource
from orchestrator.models.work import ProgressEvent, Work, blame_disk, require_room

DEFAULT_REVISION = "main"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at one commit."""

    path: Path
    revision: str


class AlreadyKnownError(Exception):
    """The commit that a branch means is one that the caller has; nothing was downloaded."""

    def __init__(self, revision: str) -> None:
        super().__init__(revision)
        self.revision = revision


def fetch_hub(
    source: HubSource, revision: str | None, folder: Path, work: Work, is_known: Callable[[str], bool]
) -> Snapshot:
    """Fetch a repository, or one file of it, into `folder`, going on with what an earlier try has left there.

    `HF_ENDPOINT`, `HF_TOKEN` and the other settings of huggingface_hub are honoured. Raises DownloadError,
    DiskFullError as soon as the size is known not to fit, or AlreadyKnownError where `is_known` says so of the commit.
    """
    model = folder / ("model" if source.member is None else "hub")
    argv = [sys.executable, "-P", "-m", "orchestrator.models.hub_download", source.repo, revision or DEFAULT_REVISION]
    argv += [str(model), str(folder / "cache"), *([] if source.member is None else [source.member])]
    said: list[str] = []
    last: dict[str, Any] = {}

    def on_line(line: str) -> None:
        try:
            event = json.loads(line)
            if event["event"] == "size":
                if is_known(event["revision"]):
                    raise AlreadyKnownError(event["revision"])
                require_room(folder, event["total"])
            elif event["event"] == "progress":
                work.progress(ProgressEvent("download", event["done"], event["total"], "bytes", source.repo))
            last.update(event)
        except (ValueError, KeyError, TypeError):
            said.append(line)

    code = work.run(argv, on_line)
    if code or last.get("event") != "done":
        blame_disk(folder)
        reason = last.get("message") or "\n".join(said[-5:]) or f"exit code {code}"
        raise DownloadError(
            f"{source} at {revision or DEFAULT_REVISION} cannot be downloaded: {reason}; "
            "check the name, the network, HF_ENDPOINT and HF_TOKEN, then run apply again"
        )
    return Snapshot(model, str(last["revision"]))

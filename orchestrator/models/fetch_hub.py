"""I/O: fetch a snapshot of a hub repository, in a process of its own that can be killed."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.models.errors import DownloadError
from orchestrator.models.work import ProgressEvent, Work, blame_disk, require_room

DEFAULT_REVISION = "main"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at one commit."""

    path: Path
    revision: str


def fetch_hub(repo: str, revision: str | None, folder: Path, work: Work) -> Snapshot:
    """Fetch `repo` into `folder`, going on with what an earlier try has left there.

    `HF_ENDPOINT`, `HF_TOKEN` and the other settings of huggingface_hub are honoured. Raises DownloadError, or
    DiskFullError as soon as the size is known not to fit.
    """
    model = folder / "model"
    argv = [sys.executable, "-P", "-m", "orchestrator.models.hub_download", repo, revision or DEFAULT_REVISION]
    said: list[str] = []
    last: dict[str, Any] = {}

    def on_line(line: str) -> None:
        try:
            event = json.loads(line)
            if event["event"] == "size":
                require_room(folder, event["total"])
            elif event["event"] == "progress":
                work.progress(ProgressEvent("download", event["done"], event["total"], "bytes", repo))
            last.update(event)
        except (ValueError, KeyError, TypeError):
            said.append(line)

    code = work.run([*argv, str(model), str(folder / "cache")], on_line)
    if code or last.get("event") != "done":
        blame_disk(folder)
        reason = last.get("message") or "\n".join(said[-5:]) or f"exit code {code}"
        raise DownloadError(
            f"hub:{repo} at {revision or DEFAULT_REVISION} cannot be downloaded: {reason}; "
            "check the name, the network, HF_ENDPOINT and HF_TOKEN, then run apply again"
        )
    return Snapshot(model, str(last["revision"]))

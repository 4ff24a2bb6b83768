"""I/O: download a hub repository: `python -m orchestrator.models.hub_download REPO REVISION FOLDER CACHE [MEMBER]`.

With a MEMBER only that file, and the other parts of it where it is the first of several. A program of its own:
huggingface_hub is slow to import and its threads cannot be cancelled. It prints JSON lines:
`{"event": "size", "total": bytes, "revision": commit}`, `{"event": "progress", "done": bytes, "total": bytes}`, and at
the end `{"event": "done", "revision": commit}`, or `{"event": "error", "message": ...}` with exit code 1.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from typing import Any

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja", "README.md"]
"""What a model is loaded from: neither code nor the weights of other engines."""
WEIGHTS = ".safetensors"
FILES_SHOWN = 12
PART = re.compile(r"-00001-of-(\d{5})\.gguf$")
"""The end of the name of a split file's first part."""
EVERY_S = 0.25
MESSAGE_CHARS = 800


def emit(event: str, **fields: Any) -> None:
    """Print one event; called from several threads."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def patterns(member: str | None) -> list[str]:
    """Return what to take of a repository; `*` and `?` are in no member's name."""
    return PATTERNS if member is None else [PART.sub(r"-?????-of-\1.gguf", member)]


def download(repo: str, revision: str, folder: str, cache: str, member: str | None = None) -> str:
    """Download into `folder` and return the commit. Raises what huggingface_hub raises."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    wanted = patterns(member)
    planned = snapshot_download(
        repo, revision=revision, local_dir=folder, cache_dir=cache, allow_patterns=wanted, dry_run=True
    )
    if not planned or (member is None and not any(file.filename.endswith(WEIGHTS) for file in planned)):
        raise ValueError(_nothing(repo, revision, member))
    total = sum(file.file_size or 0 for file in planned)
    missing = sum(file.file_size or 0 for file in planned if file.will_download)
    emit("size", total=missing, revision=planned[0].commit_hash)
    lock = threading.Lock()
    latest = [0.0]

    class Bar(tqdm):
        """Count bytes instead of drawing; of the several bars of a snapshot the furthest counts."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            self.count = 0
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            with lock:
                self.count += int(n or 0)
                if self.counts_bytes and time.monotonic() - latest[0] >= EVERY_S:
                    latest[0] = time.monotonic()
                    emit("progress", done=min(self.count, total), total=total)

    commit = planned[0].commit_hash
    snapshot_download(repo, revision=commit, local_dir=folder, cache_dir=cache, allow_patterns=wanted, tqdm_class=Bar)
    emit("progress", done=total, total=total)
    return str(commit)


def _nothing(repo: str, revision: str, member: str | None) -> str:
    """Say why a repository has nothing to offer, and what to name instead."""
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(repo, revision=revision).siblings or []
    files = sorted(sibling.rfilename for sibling in siblings if sibling.rfilename.endswith(".gguf"))
    what = "it has no files that a model is loaded from" if member is None else f"it has no {member}"
    return what + (f"; name one of its GGUF files: {', '.join(files[:FILES_SHOWN])}" if files else "")


def main(arguments: list[str]) -> int:
    """Download, say how it ended, and return the exit code."""
    try:
        commit = download(*arguments)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever huggingface_hub raises becomes one message
        cause = error.__cause__ or error  # a dry run wraps what the hub said
        emit("error", message=f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:MESSAGE_CHARS])
        return 1
    emit("done", revision=commit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

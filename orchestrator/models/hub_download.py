"""I/O: download a hub repository: `python -m orchestrator.models.hub_download REPO REVISION FOLDER CACHE`.

A program of its own: huggingface_hub is slow to import and its threads cannot be cancelled. It prints JSON lines:
`{"event": "size", "total": bytes}`, `{"event": "progress", "done": bytes, "total": bytes}`, and at the end
`{"event": "done", "revision": commit}`, or `{"event": "error", "message": ...}` with exit code 1.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja"]
"""What a model is loaded from: neither code nor the weights of other engines."""
EVERY_S = 0.25
MESSAGE_CHARS = 400


def emit(event: str, **fields: Any) -> None:
    """Print one event; called from several threads."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def download(repo: str, revision: str, folder: str, cache: str) -> str:
    """Download into `folder` and return the commit. Raises what huggingface_hub raises."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    planned = snapshot_download(
        repo, revision=revision, local_dir=folder, cache_dir=cache, allow_patterns=PATTERNS, dry_run=True
    )
    if not planned:
        raise ValueError("it has no files that a model is loaded from")
    total = sum(file.file_size or 0 for file in planned)
    emit("size", total=sum(file.file_size or 0 for file in planned if file.will_download))
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
    snapshot_download(repo, revision=commit, local_dir=folder, cache_dir=cache, allow_patterns=PATTERNS, tqdm_class=Bar)
    emit("progress", done=total, total=total)
    return str(commit)


def main(arguments: list[str]) -> int:
    """Download, say how it ended, and return the exit code."""
    repo, revision, folder, cache = arguments
    try:
        commit = download(repo, revision, folder, cache)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever huggingface_hub raises becomes one message
        cause = error.__cause__ or error  # a dry run wraps what the hub said
        emit("error", message=f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:MESSAGE_CHARS])
        return 1
    emit("done", revision=commit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

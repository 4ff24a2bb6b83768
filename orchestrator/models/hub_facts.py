"""I/O: ask a hub for the configuration of models: `python -m orchestrator.models.hub_facts REPO REVISION [REPO ...]`.

A program of its own, as `hub_download` is. It prints a JSON line for each model that could be asked, as they come:
`{"repo": ..., "revision": as asked, "config": {...}, "weights_bytes": n or null, "licence": name or null}`.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from orchestrator.models.hub_download import WEIGHTS

CONFIG = "config.json"
LICENCE = "license:"
"""How the tag begins by which a hub names a model's licence."""


def look(repo: str, revision: str) -> dict[str, Any]:
    """Return what a hub says of a repository; raises what huggingface_hub raises."""
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    info = api.model_info(repo, revision=revision)
    commit, tags = info.sha, info.tags or ()
    tree = api.list_repo_tree(repo, revision=commit, recursive=True)
    sizes = [int(getattr(entry, "size", 0)) for entry in tree if entry.path.endswith(WEIGHTS)]
    config = json.loads(Path(hf_hub_download(repo, CONFIG, revision=commit)).read_bytes())
    licence = next((tag.removeprefix(LICENCE) for tag in tags if tag.startswith(LICENCE)), None)
    said = {"config": config, "weights_bytes": sum(sizes) or None, "licence": licence}
    return {"repo": repo, "revision": revision, **said}


def main(arguments: list[str]) -> int:
    """Ask for all at once; the exit code is 0 also where a hub did not answer."""
    lock = threading.Lock()

    def ask(repo: str, revision: str) -> None:
        try:
            line = json.dumps(look(repo, revision))
        except Exception as error:  # noqa: BLE001 - the boundary: not to know is no failure
            sys.stderr.write(f"{repo}: {type(error).__name__}\n")
            return
        with lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    threads = [threading.Thread(target=ask, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

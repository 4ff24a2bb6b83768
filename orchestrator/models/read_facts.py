"""I/O: what is known of models: from their files here, else from their configuration at the hub, asked once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.models.errors import StoreError
from orchestrator.models.facts import card_licence, config_facts, gguf_facts
from orchestrator.models.fetch_hub import DEFAULT_REVISION
from orchestrator.models.sources import HubSource, PackageSource, parse_source, slug
from orchestrator.models.store import InstalledModel, Store
from orchestrator.models.wishes import is_pinned
from orchestrator.models.work import Work
from orchestrator.observed import ModelFacts
from schemas.base import ModelName
from schemas.unit import ModelSpec

DEADLINE_S = 3.0
"""What a plan may wait for a hub; a model that it could not say anything about is unknown, which is no error."""
KNOWN_S = 24 * 3600.0
"""How long an answer about a branch counts; one about a commit counts for ever."""
UNKNOWN_S = 600.0
"""How long a hub that did not answer is not asked again."""
HEADER_BYTES = 8 * 1024 * 1024
CARD_CHARS = 64 * 1024


async def known_facts(
    store: Store, models: Iterable[ModelSpec], *, deadline_s: float = DEADLINE_S
) -> Mapping[ModelName, ModelFacts]:
    """Return what is known of models, by name. Never raises; takes `deadline_s` at most, and only the first time."""
    wanted = {model.name: model for model in models}
    found = await asyncio.to_thread(_local, store, wanted)
    asked = {name: model for name, model in wanted.items() if name not in found and _repo(model) is not None}
    cached = await asyncio.to_thread(_cached, store, asked)
    found |= {name: facts for name, facts in cached.items() if facts is not None}
    unknown = {name: model for name, model in asked.items() if name not in cached}
    if unknown:
        found |= await _from_hub(store, unknown, deadline_s)
    return found


def installed_facts(model: InstalledModel) -> ModelFacts | None:
    """Return what the files of a model say; None where they are not understood."""
    try:
        if model.loadable.is_file():
            with model.loadable.open("rb") as file:
                return gguf_facts(file.read(HEADER_BYTES), _size(model, ".gguf"))
        config = json.loads((model.path / "config.json").read_bytes())
        if not isinstance(config, dict):
            return None
        modules, licence = _modules(model.path), _licence(model.path)
        return config_facts(config, _size(model, ".safetensors"), modules=modules, licence=licence)
    except (OSError, ValueError):
        return None


def _modules(folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the steps behind a sentence encoder, in their order: the last part of their type, and their numbers."""
    try:
        listed = json.loads((folder / "modules.json").read_bytes())
        steps = [(str(step["type"]).rpartition(".")[2], str(step["path"])) for step in listed if step["path"]]
        found: list[tuple[str, Mapping[str, Any]]] = []
        for kind, name in steps:
            place = folder / Path(name).name / "config.json"  # a step is a folder of the model's own
            config = json.loads(place.read_bytes()) if place.is_file() else {}
            found.append((kind, config if isinstance(config, dict) else {}))
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _licence(folder: Path) -> str | None:
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as card:
            return card_licence(card.read(CARD_CHARS))
    except OSError:
        return None


def _size(model: InstalledModel, suffix: str) -> int | None:
    if model.manifest is not None:
        return sum(entry.size for name, entry in model.manifest.files.items() if name.endswith(suffix)) or None
    files = [model.path] if model.path.is_file() else list(model.path.glob(f"*{suffix}"))
    return sum(file.stat().st_size for file in files) or None


def _local(store: Store, models: Mapping[ModelName, ModelSpec]) -> dict[ModelName, ModelFacts]:
    found = {}
    for name, model in models.items():
        source = parse_source(model.source)
        installed = store.lookup(source, model.revision, model.digest) or store.lookup(
            source, model.revision, model.digest, "original"
        )
        if installed is not None and (facts := installed_facts(installed)) is not None:
            found[name] = facts
    return found


def _repo(model: ModelSpec) -> HubSource | None:
    """Return the repository of a model whose configuration a hub can show."""
    source = parse_source(model.source)
    return source if isinstance(source, HubSource) and source.member is None else None


def _place(store: Store, model: ModelSpec) -> Path:
    source = parse_source(model.source)
    assert isinstance(source, HubSource | PackageSource)  # noqa: S101 - asked for repositories only
    return store.root / "facts" / f"{slug(source)}@{model.revision or DEFAULT_REVISION}.json"


def _cached(store: Store, models: Mapping[ModelName, ModelSpec]) -> dict[ModelName, ModelFacts | None]:
    """Return what was asked before; None for a model that nothing could be learned of a short while ago."""
    found: dict[ModelName, ModelFacts | None] = {}
    for name, model in models.items():
        try:
            note = json.loads(_place(store, model).read_bytes())
            facts = None if note["facts"] is None else ModelFacts(**note["facts"])
            age_s = time.time() - float(note["at"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        lasts_s = UNKNOWN_S if facts is None else float("inf") if is_pinned(model) else KNOWN_S
        if 0 <= age_s < lasts_s:
            found[name] = facts
    return found


async def _from_hub(
    store: Store, models: Mapping[ModelName, ModelSpec], deadline_s: float
) -> dict[ModelName, ModelFacts]:
    answers: dict[tuple[str, str], ModelFacts | None] = {}
    asked = {
        name: (repo.repo, model.revision or DEFAULT_REVISION)
        for name, model in models.items()
        if (repo := _repo(model))
    }

    def on_line(line: str) -> None:
        try:
            answer = json.loads(line)
            config, size = dict(answer["config"]), answer["weights_bytes"]
            facts = config_facts(config, size, licence=answer.get("licence"))
            answers[str(answer["repo"]), str(answer["revision"])] = facts
        except (ValueError, KeyError, TypeError):
            return  # a warning of a library, or why a hub did not answer

    argv = [sys.executable, "-P", "-m", "orchestrator.models.hub_facts"]
    argv += [word for pair in sorted(set(asked.values())) for word in pair]
    cancel = threading.Event()
    work = Work(lambda _: None, cancel)
    each_s = str(max(1, int(deadline_s * 2 / 3)))  # less than the whole: what hangs does not hide what was answered
    settings = {"HF_HUB_ETAG_TIMEOUT": each_s, "HF_HUB_DOWNLOAD_TIMEOUT": each_s}
    asking = asyncio.get_running_loop().run_in_executor(None, work.run, argv, on_line, settings)
    try:
        async with asyncio.timeout(deadline_s):
            await asyncio.shield(asking)
    except (TimeoutError, OSError):
        pass  # what has been answered by now counts
    finally:
        cancel.set()
        await asyncio.wait([asking])  # its process is killed before anybody goes on
        if not asking.cancelled():
            asking.exception()
    found = {name: answers.get(pair) for name, pair in asked.items()}
    await asyncio.to_thread(_remember, store, models, found)
    return {name: facts for name, facts in found.items() if facts is not None}


def _remember(
    store: Store, models: Mapping[ModelName, ModelSpec], found: Mapping[ModelName, ModelFacts | None]
) -> None:
    """Note what was learned; a store that cannot be written is only asked again."""
    for name, facts in found.items():
        note: dict[str, Any] = {"at": time.time(), "facts": None if facts is None else dataclasses.asdict(facts)}
        place = _place(store, models[name])
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            descriptor, part = tempfile.mkstemp(dir=place.parent)
            with os.fdopen(descriptor, "w") as file:
                json.dump(note, file)
            Path(part).replace(place)
        except (OSError, StoreError):
            return

"""I/O: ask the keeper of a node's model store, over any transport, in types."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.models.errors import DiskFullError, StoreError
from orchestrator.models.manifest import FileEntry, Manifest, content
from orchestrator.models.sources import HubSource, OllamaSource, PackageSource, PathSource, parse_source
from orchestrator.models.store import InstalledModel
from orchestrator.observed import ModelForm
from orchestrator.transport.base import Completed, NodeTransport
from schemas.unit import ModelSpec

QUICK_S = 30.0  # a loaded node may need seconds to start Python
STDERR_CHARS = 2000
NO_SUCH_FILE = 2  # what Python exits with when it cannot open its program

Report = Callable[[int, int], None]
"""Is given the bytes done and in all."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model in the store of a node."""

    slug: str
    entry: str
    manifest: Manifest
    """Without its files, whose names the listing leaves out."""
    content: str
    """One digest for the names and contents of all files."""
    path: str
    """Its folder on the node."""
    loadable: str
    """What an engine on the node is told to load."""
    size: int
    is_whole: bool
    """Every file is there with its size."""
    forms: tuple[ModelForm, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a node's store had when it was asked."""

    models: tuple[StoredModel, ...] = ()
    paths: Mapping[str, str | None] = field(default_factory=dict)
    """For each asked path: `directory`, `file` (GGUF), or None where it is neither."""

    def find(self, model: ModelSpec, form: ModelForm, here: InstalledModel | None = None) -> str | None:
        """Return what a unit on the node is told to load; None where the node has not got the model.

        Where the model is `here`, in this machine's store, the node must have the very same files: the ranks of a group
        refuse each other otherwise, and a branch may mean another commit by now. Else it is what it got last.
        """
        match parse_source(model.source):
            case PathSource(path):
                kinds = {"directory"} if form == "mlx" else {"directory", "file"}
                return path if self.paths.get(path) in kinds else None
            case OllamaSource():
                return None
            case HubSource() | PackageSource():
                wanted = content(here.manifest.files) if here is not None and here.manifest is not None else None
        fitting = [
            each for each in self.models if each.is_whole and fits(each, model, form) and wanted in (None, each.content)
        ]
        newest = max(fitting, key=lambda each: each.manifest.installed_at, default=None)
        return None if newest is None else newest.loadable


class NodeStore:
    """The model store of one node: its keeper is pushed there by content hash, then asked.

    `python` is the interpreter on the node, `root` an absolute directory there. Every method raises TransportError when
    the node could not be asked, and StoreError when the keeper said no.
    """

    def __init__(self, transport: NodeTransport, python: str, root: str) -> None:
        self._transport = transport
        self._python = python
        self._root = root
        self._source = Path(__file__).with_name("keeper.py").read_bytes()
        digest = hashlib.sha256(self._source).hexdigest()[:16]
        self._path = f"{root}/keeper/{digest}/keeper.py"
        self._pushing = asyncio.Lock()
        self._is_there = False

    @property
    def node(self) -> str:
        """Name the node."""
        return self._transport.node

    async def listing(self, paths: Iterable[str] = ()) -> Listing:
        """Return what is in the store, and whether `paths` can be used: one command."""
        answer = await self._ask("list", {"paths": sorted(paths)}, QUICK_S)
        return Listing(tuple(self._stored(line) for line in answer["models"]), dict(answer["paths"]))

    async def prepare(self, slug: str, entry: str, manifest: Manifest) -> tuple[str, tuple[str, ...]] | None:
        """Get ready for a model and return where its files go, and which are missing; None where it is there already.

        Raises DiskFullError where the node has not got the room.
        """
        request = {"slug": slug, "entry": entry, "manifest": manifest.model_dump(mode="json")}
        answer = await self._follow("prepare", request, lambda _done, _total: None)
        return None if answer["is_present"] else (str(answer["incoming"]), tuple(answer["missing"]))

    async def install(self, slug: str, entry: str, manifest: Manifest, report: Report) -> tuple[str, ...]:
        """Check what has arrived, and move it into place unless files are damaged: those are returned."""
        request = {"slug": slug, "entry": entry, "manifest": manifest.model_dump(mode="json")}
        return tuple((await self._follow("install", request, report))["damaged"])

    async def verify(self, models: Sequence[StoredModel], report: Report) -> Mapping[str, tuple[str, ...]]:
        """Read every byte of models and return by `slug/entry` the files that differ from their manifests."""
        request = {"entries": [[model.slug, model.entry] for model in models]}
        answer = await self._follow("verify", request, report)
        return {name: tuple(files) for name, files in answer["damaged"].items()}

    async def drop(self, model: StoredModel, files: Sequence[str]) -> None:
        """Remove damaged files of a model, so that it counts as missing until it is brought again."""
        request = {"slug": model.slug, "entry": model.entry, "files": list(files)}
        await self._follow("drop", request, lambda _done, _total: None)

    async def remove(self, model: StoredModel) -> None:
        """Remove a model from the store."""
        await self._follow("remove", {"slug": model.slug, "entry": model.entry}, lambda _done, _total: None)

    async def push_file(self, here: Path, there: str, report: Callable[[int], None]) -> None:
        """Send one file."""
        await self._transport.push_file(str(here), there, mode=0o644, report=report)

    async def _ask(self, verb: str, request: Mapping[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """Run a verb that waits for nobody; the keeper is pushed only when it turns out to be missing."""
        argv = [self._python, "-S", self._path, verb]
        done = await self._transport.run(argv, input=self._encode(request), timeout_s=timeout_s)
        if done.exit_code == NO_SUCH_FILE and not done.stdout:
            await self._push()
            done = await self._transport.run(argv, input=self._encode(request), timeout_s=timeout_s)
        return self._answer(done)

    async def _follow(self, verb: str, request: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
        """Run a verb that may take long, with its progress."""
        if not self._is_there:
            await self._push()
        argv = [self._python, "-S", self._path, verb]
        last = b""
        async with self._transport.stream(argv, input=self._encode(request)) as stream:
            async for line in stream:
                last = line
                event = _progress(line)
                if event is not None:
                    report(*event)
            exit_code = await stream.wait()
            return self._answer(Completed(exit_code, last, stream.error_tail().encode()))

    async def _push(self) -> None:
        async with self._pushing:
            seen = await self._transport.run(["test", "-f", self._path], timeout_s=QUICK_S)
            if seen.exit_code:
                await self._transport.push(self._source, self._path, mode=0o600)
            self._is_there = True

    def _encode(self, request: Mapping[str, Any]) -> bytes:
        return json.dumps({"root": self._root, **request}).encode() + b"\n"

    def _answer(self, done: Completed) -> Mapping[str, Any]:
        """Read the keeper's answer, or raise what it means."""
        try:
            answer = json.loads(done.stdout)
            if answer["ok"]:
                return dict(answer)
            error = dict(answer["error"])
            code, message = str(error["code"]), str(error["message"])
        except (ValueError, KeyError, TypeError) as mismatch:
            self._is_there = False  # it may have been removed from the node; the next verb looks again
            said = done.stderr.decode("utf-8", "replace").strip()[-STDERR_CHARS:] or "it said nothing"
            raise StoreError(
                f"{self.node}: {self._python} {self._path} exited with {done.exit_code}: {said}"
            ) from mismatch
        if code == "disk_full":
            raise DiskFullError(f"{self.node}:{self._root}", error.get("need"), int(error.get("free", 0)))
        raise StoreError(f"{self.node}: {message}")

    def _stored(self, line: Mapping[str, Any]) -> StoredModel:
        path = f"{self._root}/models/{line['slug']}/{line['entry']}"
        ggufs = [str(name) for name in line["ggufs"]]
        names = {name: FileEntry(size=0, sha256="") for name in ggufs}
        manifest = Manifest(files=names, **line["manifest"])
        return StoredModel(
            slug=str(line["slug"]),
            entry=str(line["entry"]),
            manifest=manifest,
            content=str(line["content"]),
            path=path,
            loadable=f"{path}/{ggufs[0]}" if ggufs else path,
            size=int(line["size"]),
            is_whole=bool(line["is_whole"]),
            forms=manifest.forms,
        )


def fits(stored: StoredModel, model: ModelSpec, form: ModelForm) -> bool:
    """Tell whether an entry is what a unit may load for a model, or may have loaded before a branch moved on."""
    manifest = stored.manifest
    return (
        manifest.source == model.source
        and form in stored.forms
        and model.revision in {None, manifest.requested, manifest.revision}
        and model.digest in {None, manifest.digest}
    )


def _progress(line: bytes) -> tuple[int, int] | None:
    try:
        event = json.loads(line)
        return (int(event["done"]), int(event["total"])) if event.get("event") == "progress" else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None

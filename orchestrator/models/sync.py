"""I/O: bring models to where units load them: into this machine's store, and from there to other nodes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from orchestrator.execute import Progress, Report
from orchestrator.models.errors import StoreError
from orchestrator.models.manifest import Manifest
from orchestrator.models.node_store import Listing, NodeStore
from orchestrator.models.sources import PathSource, parse_source
from orchestrator.models.store import InstalledModel, Store, entry_name
from orchestrator.models.wishes import Wish
from orchestrator.models.work import ProgressEvent
from orchestrator.observed import ModelForm
from orchestrator.transport.base import CommandTimeoutError, NodeUnreachableError, TransportError
from schemas.base import ModelName

__all__ = ["ModelSync", "Wish", "asked_paths", "in_thread", "loadable_on", "models_here", "remote_models"]

TRANSFERS = 3
"""Nodes that are sent files at once. They read the same pages of the store, as all start with the same file."""
ATTEMPTS = 2
"""How often a file is sent whose content did not arrive as it was."""

T = TypeVar("T")


class ModelSync:
    """Brings models about, each fetched once and a bounded number sent at a time. One for one event loop.

    What is interrupted at any point leaves nothing half-installed anywhere, and is gone on with the next time.
    """

    def __init__(self, store: Store, transfers: int = TRANSFERS) -> None:
        self._store = store
        self._transfers = asyncio.Semaphore(transfers)
        self._installing: dict[Wish, asyncio.Lock] = {}

    async def install(self, wish: Wish, report: Report, *, update: bool = False) -> InstalledModel:
        """Bring a model into this machine's store; cancelling it ends its tools before it returns.

        Raises StoreError.
        """
        model = wish.model
        source = parse_source(model.source)
        loop, cancel = asyncio.get_running_loop(), threading.Event()

        def forward(event: ProgressEvent) -> None:
            loop.call_soon_threadsafe(report, Progress(event.phase, event.done, event.total, event.unit))

        def work() -> InstalledModel:
            return self._store.install(
                source, model.revision, model.digest, wish.form, progress=forward, cancel=cancel, update=update
            )

        async with self._installing.setdefault(wish, asyncio.Lock()):
            return await in_thread(work, cancel)

    async def bring(self, node: NodeStore, wish: Wish, report: Report) -> None:
        """Bring a model into the store of another node; quick where it is there already.

        Raises StoreError, DiskFullError among them with the node's name, or TransportError.
        """
        source = parse_source(wish.model.source)
        if isinstance(source, PathSource):
            if (await node.listing([source.path])).find(wish.model, wish.form) is None:
                raise StoreError(_not_there(node.node, source, wish.form))
            return
        here = await self.install(wish, report)
        assert here.manifest is not None  # noqa: S101 - only `path:` models have none
        async with self._transfers:
            await self._send(node, here, here.manifest, report)

    async def _send(self, node: NodeStore, here: InstalledModel, manifest: Manifest, report: Report) -> None:
        place, entry = _slug(here), entry_name(manifest)
        wanted = await node.prepare(place, entry, manifest)
        if wanted is None:
            return
        incoming, missing = wanted
        for _ in range(ATTEMPTS):
            try:
                await _push(node, here, manifest, incoming, missing, report)
            except (NodeUnreachableError, CommandTimeoutError):
                raise
            except TransportError:
                # Who brings the same model and is faster takes away what a file is written into.
                if await node.prepare(place, entry, manifest) is None:
                    return
                raise
            missing = await node.install(
                place, entry, manifest, lambda done, total: report(Progress("verify", done, total, "bytes"))
            )
            if not missing:
                return
        raise StoreError(
            f"{', '.join(missing)} of {manifest.source} arrived on {node.node} other than the manifest says, "
            f"{ATTEMPTS} times; check this machine's copy: orchestrate models verify"
        )


async def remote_models(
    node: NodeStore, wishes: Sequence[Wish], store: Store
) -> frozenset[tuple[ModelName, ModelForm]]:
    """Return which of the wished models a node has: one command. Raises StoreError or TransportError."""
    listing = await node.listing(asked_paths(wishes))
    here = await asyncio.to_thread(models_here, store, wishes)
    return frozenset(
        (wish.model.name, wish.form)
        for wish in wishes
        if listing.find(wish.model, wish.form, here.get(wish)) is not None
    )


async def loadable_on(node: NodeStore, wish: Wish, store: Store) -> str | None:
    """Return the path on a node that a unit is told to load; None where the node has not got the model."""
    listing: Listing = await node.listing(asked_paths([wish]))
    here = await asyncio.to_thread(models_here, store, [wish])
    return listing.find(wish.model, wish.form, here.get(wish))


def asked_paths(wishes: Sequence[Wish]) -> list[str]:
    """Return the paths that only the node itself can look for."""
    sources = (parse_source(wish.model.source) for wish in wishes)
    return [source.path for source in sources if isinstance(source, PathSource)]


def models_here(store: Store, wishes: Sequence[Wish]) -> Mapping[Wish, InstalledModel]:
    """Return the wished models that are in this machine's store."""
    found = {}
    for wish in wishes:
        model = wish.model
        if (here := store.lookup(parse_source(model.source), model.revision, model.digest, wish.form)) is not None:
            found[wish] = here
    return found


async def in_thread(work: Callable[[], T], cancel: threading.Event) -> T:
    """Run work in a thread; when cancelled, set `cancel` and wait for its end before anybody is told."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancel.set()
        await asyncio.wait([running])
        running.exception()  # it is ours: the work was given up
        raise


async def _push(
    node: NodeStore, here: InstalledModel, manifest: Manifest, incoming: str, names: Sequence[str], report: Report
) -> None:
    """Send files, with progress over the whole model: what is there already counts as done."""
    total = manifest.size
    done = total - sum(manifest.files[name].size for name in names)
    for name in names:
        sent = partial(_sent, report, done, total)
        await node.push_file(here.path / name, f"{incoming}/{name}", sent)
        done += manifest.files[name].size
    report(Progress("copy", done, total, "bytes"))


def _sent(report: Report, before: int, total: int, sent: int) -> None:
    report(Progress("copy", before + sent, total, "bytes"))


def _slug(here: InstalledModel) -> str:
    return here.path.parent.name


def _not_there(node: str, source: PathSource, form: ModelForm) -> str:
    what = "a model directory (config.json)" if form == "mlx" else "a model directory (config.json) or a .gguf file"
    return f"{source} is not on {node}: put {what} there; path: models are looked up on their node and never copied"

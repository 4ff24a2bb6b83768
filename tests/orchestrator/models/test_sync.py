"""I/O: models reach a node whole or not at all, and only what it lacks is sent; keeper and files are real."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.execute import Progress
from orchestrator.models.errors import DiskFullError, StoreError
from orchestrator.models.manifest import FileEntry
from orchestrator.models.node_store import NodeStore, content
from orchestrator.models.sources import HubSource
from orchestrator.models.sync import ModelSync, Wish, loadable_on, remote_models
from orchestrator.transport.base import Completed, NodeUnreachableError, Stream, TransportError
from orchestrator.transport.local import LocalTransport
from schemas.unit import ModelSpec
from tests.fakes.model_hub import COMMIT, NEXT_COMMIT, ModelHub
from tests.orchestrator.models.conftest import WEIGHTS, Shop, hub_environment

SOURCE = HubSource("lab/tiny")
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "1_Pooling/config.json": b"{}",
}
NAMES = {*FILES, "manifest.json"}


class Wire:
    """A transport to "another machine" that counts what is sent and can break: the commands run here."""

    def __init__(self, node: str = "far") -> None:
        self._here = LocalTransport(node)
        self.sent: list[str] = []
        self.verbs: list[str] = []
        self.at_once = self.most_at_once = 0
        self.break_after_bytes: int | None = None
        self.flip: int = 0
        self.gate: asyncio.Event | None = None

    @property
    def node(self) -> str:
        return self._here.node

    async def run(self, argv: Sequence[str], *, input: bytes = b"", timeout_s: float) -> Completed:  # noqa: A002
        self.verbs.append(argv[-1])
        return await self._here.run(argv, input=input, timeout_s=timeout_s)

    async def push(self, data: bytes, path: str, *, mode: int) -> None:
        await self._here.push(data, path, mode=mode)

    def stream(self, argv: Sequence[str], *, input: bytes = b"") -> AbstractAsyncContextManager[Stream]:  # noqa: A002
        self.verbs.append(argv[-1])
        return self._here.stream(argv, input=input)

    async def push_file(self, local_path: str, path: str, *, mode: int, report: Callable[[int], None]) -> None:
        async with self._counted():
            if self.break_after_bytes is not None and len(await read(local_path)) > self.break_after_bytes:
                # As a cut connection leaves it: something under another name, and nothing at the place itself.
                await self._here.push((await read(local_path))[:1000], f"{path}.half", mode=mode)
                raise NodeUnreachableError(self.node, "the connection was lost")
            self.sent.append(Path(path).name)
            if self.flip:
                self.flip -= 1
                await self._here.push(bytes(len(await read(local_path))), path, mode=mode)
                return
            await self._here.push_file(local_path, path, mode=mode, report=report)

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.gate is not None:
                await self.gate.wait()
            yield
        finally:
            self.at_once -= 1


async def read(path: str) -> bytes:
    return await asyncio.to_thread(Path(path).read_bytes)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def quiet(_: Progress) -> None:
    """Report nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    with ModelHub(SOURCE.repo, dict(FILES)) as served:
        for name, value in hub_environment(served, tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield served


def wish(revision: str | None = COMMIT, source: str = str(SOURCE)) -> Wish:
    return Wish(ModelSpec(name="tiny", source=source, revision=revision), "mlx")


class Far:
    """A node with a store of its own."""

    def __init__(self, root: Path, name: str = "far") -> None:
        self.root = root
        self.wire = Wire(name)
        self.store = NodeStore(self.wire, sys.executable, str(root))

    def entries(self) -> list[Path]:
        return sorted((self.root / "models").glob("*/*"))

    async def damage(self) -> dict[str, tuple[str, ...]]:
        listing = await self.store.listing()
        return dict(await self.store.verify(listing.models, lambda _done, _total: None))


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path / "far")


ODD = {"a (1).txt": b"1", "ünï.json": b"{}", ".x/config.json": b"{}", "..a.json": b"{}"}


async def test_files_with_odd_names_arrive_from_a_hub_on_a_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shop: Shop, far: Far
) -> None:
    with ModelHub(SOURCE.repo, {**FILES, **ODD}) as served:
        for name, value in hub_environment(served, tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        await ModelSync(shop.store).bring(far.store, wish(), quiet)
    (entry,) = far.entries()
    assert set(ODD) <= names(entry)
    assert {name: (entry / name).read_bytes() for name in ODD} == ODD
    assert not any((await far.damage()).values())


async def test_model_arrives_whole_and_is_found_there(hub: ModelHub, shop: Shop, far: Far) -> None:
    sync = ModelSync(shop.store)
    assert await remote_models(far.store, [wish()], shop.store) == frozenset()

    await sync.bring(far.store, wish(), quiet)

    (entry,) = far.entries()
    assert names(entry) == NAMES
    assert {name: (entry / name).read_bytes() for name in FILES} == FILES
    assert await remote_models(far.store, [wish(), wish("0" * 40)], shop.store) == {("tiny", "mlx")}
    assert await loadable_on(far.store, wish(), shop.store) == str(entry)
    assert list(await far.damage()) == [f"hub--lab--tiny/{COMMIT}"]
    assert [path.name for path in (far.root / "incoming").glob("*/*")] == ["lock"]


async def test_present_model_costs_one_command_and_sends_nothing(hub: ModelHub, shop: Shop, far: Far) -> None:
    sync = ModelSync(shop.store)
    await sync.bring(far.store, wish(), quiet)
    far.wire.sent.clear()
    far.wire.verbs.clear()

    await sync.bring(far.store, wish(), quiet)
    await remote_models(far.store, [wish()], shop.store)

    assert (far.wire.sent, far.wire.verbs) == ([], ["prepare", "list"])


async def test_progress_counts_bytes_of_the_whole_and_never_goes_back(hub: ModelHub, shop: Shop, far: Far) -> None:
    seen: list[Progress] = []
    total = sum(len(data) for data in FILES.values())

    sync = ModelSync(shop.store)
    await sync.install(wish(), quiet)

    await sync.bring(far.store, wish(), seen.append)

    assert list(dict.fromkeys(event.phase for event in seen)) == ["copy", "verify"]
    for phase in ("copy", "verify"):
        events = [event for event in seen if event.phase == phase and event.total == total]
        done = [event.done for event in events]
        assert done == sorted(done)
    assert [event.done for event in seen if event.phase == "copy"][-1] == total


async def test_only_what_differs_is_sent_for_another_revision(hub: ModelHub, shop: Shop, far: Far) -> None:
    sync = ModelSync(shop.store)
    await sync.bring(far.store, wish(), quiet)
    far.wire.sent.clear()
    hub.push(NEXT_COMMIT, {**FILES, "config.json": b'{"model_type": "qwen3"}'})

    await sync.bring(far.store, wish(NEXT_COMMIT), quiet)

    assert far.wire.sent == ["config.json"]
    assert [names(entry) for entry in far.entries()] == [NAMES, NAMES]
    assert await far.damage() == {f"hub--lab--tiny/{commit}": () for commit in (COMMIT, NEXT_COMMIT)}


async def test_connection_that_breaks_leaves_nothing_and_is_gone_on_with(hub: ModelHub, shop: Shop, far: Far) -> None:
    sync = ModelSync(shop.store)
    far.wire.break_after_bytes = 1000
    with pytest.raises(NodeUnreachableError, match="far: the connection was lost"):
        await sync.bring(far.store, wish(), quiet)
    assert far.entries() == []
    assert await remote_models(far.store, [wish()], shop.store) == frozenset()
    small, far.wire.break_after_bytes = list(far.wire.sent), None
    assert small == ["config.json", "config.json"]

    await sync.bring(far.store, wish(), quiet)

    assert far.wire.sent[len(small) :] == [name for name in FILES if name.endswith(".safetensors")]
    assert names(far.entries()[0]) == NAMES  # and nothing of the half file


async def test_cancelled_transfer_leaves_nothing_half_installed(hub: ModelHub, shop: Shop, far: Far) -> None:
    sync = ModelSync(shop.store)
    far.wire.gate = asyncio.Event()
    bringing = asyncio.create_task(sync.bring(far.store, wish(), quiet))
    async with asyncio.timeout(60):
        while not far.wire.at_once:
            await asyncio.sleep(0.01)

    bringing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await bringing
    assert far.entries() == []
    far.wire.gate = None
    await sync.bring(far.store, wish(), quiet)
    assert names(far.entries()[0]) == NAMES


async def test_file_that_arrives_damaged_is_sent_again(hub: ModelHub, shop: Shop, far: Far) -> None:
    far.wire.flip = 1

    await ModelSync(shop.store).bring(far.store, wish(), quiet)

    assert len(far.wire.sent) == len(FILES) + 1
    assert await far.damage() == {f"hub--lab--tiny/{COMMIT}": ()}


async def test_file_that_never_arrives_as_it_was_is_named(hub: ModelHub, shop: Shop, far: Far) -> None:
    far.wire.flip = 100

    with pytest.raises(StoreError, match=r"config\.json.* of hub:lab/tiny arrived on far other than .* models verify"):
        await ModelSync(shop.store).bring(far.store, wish(), quiet)

    assert far.entries() == []


async def test_damage_on_the_node_is_found_and_mended_with_what_differs(hub: ModelHub, shop: Shop, far: Far) -> None:
    sync, weights = ModelSync(shop.store), "model-00001-of-00002.safetensors"
    await sync.bring(far.store, wish(), quiet)
    (entry,) = far.entries()
    (entry / weights).write_bytes(b"X" + WEIGHTS[1:])
    assert await far.damage() == {f"hub--lab--tiny/{COMMIT}": (weights,)}
    (entry / weights).write_bytes(b"short")
    assert await remote_models(far.store, [wish()], shop.store) == frozenset()
    far.wire.sent.clear()

    await sync.bring(far.store, wish(), quiet)

    assert far.wire.sent == [weights]
    assert await far.damage() == {f"hub--lab--tiny/{COMMIT}": ()}


async def test_branch_that_moved_on_is_not_what_the_node_has(hub: ModelHub, shop: Shop, far: Far) -> None:
    sync, unpinned = ModelSync(shop.store), wish(None)
    await sync.bring(far.store, unpinned, quiet)
    assert await remote_models(far.store, [unpinned], shop.store) == {("tiny", "mlx")}

    hub.push(NEXT_COMMIT, {**FILES, "config.json": b'{"model_type": "qwen3"}'})
    await sync.install(unpinned, quiet, update=True)

    assert await remote_models(far.store, [unpinned], shop.store) == frozenset()
    await sync.bring(far.store, unpinned, quiet)
    assert await loadable_on(far.store, unpinned, shop.store) == str(far.root / "models/hub--lab--tiny" / NEXT_COMMIT)


async def test_node_keeps_its_model_when_this_machine_has_none(hub: ModelHub, shop: Shop, far: Far) -> None:
    await ModelSync(shop.store).bring(far.store, wish(), quiet)
    here = shop.store.lookup(SOURCE, COMMIT)
    assert here is not None
    shutil.rmtree(here.path)

    assert await remote_models(far.store, [wish(), wish(None)], shop.store) == {("tiny", "mlx")}


async def test_several_nodes_at_once_share_one_download_and_a_bounded_number_of_transfers(
    hub: ModelHub, shop: Shop, tmp_path: Path
) -> None:
    nodes = [Far(tmp_path / f"far{number}", f"far{number}") for number in range(4)]
    wire = nodes[0].wire
    for node in nodes:
        node.store = NodeStore(wire, sys.executable, str(node.root))
    sync = ModelSync(shop.store, transfers=2)

    async with asyncio.TaskGroup() as group:
        for node in nodes:
            group.create_task(sync.bring(node.store, wish(), quiet))

    assert all(names(node.entries()[0]) == NAMES for node in nodes)
    assert wire.most_at_once <= 2
    fetched = [path for method, path in hub.requests if method == "GET" and path.endswith(".safetensors")]
    assert len(fetched) == 2


async def test_two_senders_to_one_node_end_with_one_whole_model(hub: ModelHub, shop: Shop, far: Far) -> None:
    other = Far(far.root)
    await ModelSync(shop.store).install(wish(), quiet)

    async with asyncio.TaskGroup() as group:
        for store in (far.store, other.store):
            group.create_task(ModelSync(shop.store).bring(store, wish(), quiet))

    assert [names(entry) for entry in far.entries()] == [NAMES]
    assert await far.damage() == {f"hub--lab--tiny/{COMMIT}": ()}


class Overtaken(Wire):
    """A way on which another sender brings the whole model while the first file of ours is being written."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]], *, loses_its_place: bool) -> None:
        super().__init__()
        self._meanwhile = [meanwhile]
        self._loses_its_place = loses_its_place

    async def push_file(self, local_path: str, path: str, *, mode: int, report: Callable[[int], None]) -> None:
        while self._meanwhile:
            await self._meanwhile.pop()()
            if self._loses_its_place:
                raise TransportError(self.node, f"cannot write {path}: No such file or directory")
        await super().push_file(local_path, path, mode=mode, report=report)


@pytest.mark.parametrize("loses_its_place", [True, False])
async def test_a_sender_that_is_overtaken_finds_the_model_there(
    hub: ModelHub, shop: Shop, far: Far, loses_its_place: bool
) -> None:
    placed: list[int] = []

    async def bring() -> None:
        await ModelSync(shop.store).bring(far.store, wish(), quiet)
        placed.append(far.entries()[0].stat().st_ino)

    slow = NodeStore(Overtaken(bring, loses_its_place=loses_its_place), sys.executable, str(far.root))
    await ModelSync(shop.store).bring(slow, wish(), quiet)
    assert [names(entry) for entry in far.entries()] == [NAMES]
    assert [entry.stat().st_ino for entry in far.entries()] == placed, "it was put into place twice"
    assert not [path for path in (far.root / "incoming").glob("*/*") if path.name != "lock"]


async def test_path_is_looked_for_on_the_node_and_never_copied(shop: Shop, far: Far, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    here = wish(None, f"path:{place}")
    with pytest.raises(StoreError, match=rf"path:{place} is not on far: put a model directory.*never copied"):
        await ModelSync(shop.store).bring(far.store, here, quiet)
    place.mkdir()
    (place / "config.json").write_text("{}")

    await ModelSync(shop.store).bring(far.store, here, quiet)

    assert await remote_models(far.store, [here], shop.store) == {("tiny", "mlx")}
    assert await loadable_on(far.store, here, shop.store) == str(place)
    assert far.wire.sent == []


async def test_removed_model_is_gone(hub: ModelHub, shop: Shop, far: Far) -> None:
    await ModelSync(shop.store).bring(far.store, wish(), quiet)
    (model,) = (await far.store.listing()).models

    await far.store.remove(model)
    await far.store.remove(model)

    assert (await far.store.listing()).models == ()
    assert list((far.root / "models").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount 1 MB."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small tmpfs needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_full_node_is_named_before_anything_is_sent(hub: ModelHub, shop: Shop, small_disk: Path) -> None:
    far = Far(small_disk / "cache")

    with pytest.raises(DiskFullError, match=rf"no room in far:{small_disk}/cache: need 1,400,\d+ bytes, free [\d,]+"):
        await ModelSync(shop.store).bring(far.store, wish(), quiet)

    assert far.wire.sent == []


async def test_keeper_that_was_removed_is_pushed_again(hub: ModelHub, shop: Shop, far: Far) -> None:
    await ModelSync(shop.store).bring(far.store, wish(), quiet)
    for program in far.root.glob("keeper/*/keeper.py"):
        program.unlink()

    assert await remote_models(far.store, [wish()], shop.store) == {("tiny", "mlx")}


async def test_node_without_python_is_named(shop: Shop, tmp_path: Path) -> None:
    store = NodeStore(Wire(), "/no/python", str(tmp_path / "far"))

    with pytest.raises((StoreError, TransportError), match=r"far: .*/no/python"):
        await store.listing()


@pytest.mark.parametrize(
    "request_",
    [
        {"slug": "..", "entry": "x", "manifest": {"files": {}}},
        {"slug": "a", "entry": "../x", "manifest": {"files": {}}},
        {"slug": "a", "entry": "x", "manifest": {"files": {"../../evil": {"size": 1, "sha256": "x"}}}},
        {"slug": "a", "entry": "x", "manifest": {"files": {"/etc/evil": {"size": 1, "sha256": "x"}}}},
        {"slug": "a", "entry": "x", "manifest": {"files": {"manifest.json": {"size": 1, "sha256": "x"}}}},
        {"slug": "a", "entry": "x", "manifest": {"files": {"a/../../evil": {"size": 1, "sha256": "x"}}}},
        {"slug": "a", "entry": "x", "manifest": {"files": {".push.evil": {"size": 1, "sha256": "x"}}}},
        {"slug": "a", "entry": "x", "manifest": {"files": {"a\nb": {"size": 1, "sha256": "x"}}}},
        {"slug": "a"},
    ],
)
def test_keeper_stays_in_its_root(tmp_path: Path, request_: dict[str, object]) -> None:
    program = Path(sys.modules[NodeStore.__module__].__file__ or "").with_name("keeper.py")
    line = json.dumps({"root": str(tmp_path / "root"), **request_}) + "\n"

    done = subprocess.run(
        [sys.executable, "-S", str(program), "prepare"], input=line, capture_output=True, text=True, check=False
    )

    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"], answer["error"]["code"]) == (1, False, "bad_request")
    assert not names(tmp_path)


def test_keeper_takes_every_name_that_a_store_takes(tmp_path: Path) -> None:
    program = Path(sys.modules[NodeStore.__module__].__file__ or "").with_name("keeper.py")
    files = {name: {"size": 1, "sha256": "x"} for name in (".x/config.json", "a (1).txt", "ünï.json", "..a")}
    request = {"root": str(tmp_path / "root"), "slug": "a", "entry": "x", "manifest": {"version": 1, "files": files}}

    done = subprocess.run(
        [sys.executable, "-S", str(program), "prepare"],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )

    assert json.loads(done.stdout)["missing"] == list(files)


def test_both_sides_compute_one_digest_of_a_models_content(hub: ModelHub, shop: Shop) -> None:
    files = {"b": FileEntry(size=2, sha256="22"), "a": FileEntry(size=1, sha256="11")}

    assert content(files) == content(dict(reversed(files.items())))
    assert content(files) != content({"a": files["b"], "b": files["a"]})

"""I/O: models are installed once, whole or not at all; pip, processes and locks are real."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.models.errors import (
    ConversionError,
    DamagedDownloadError,
    DiskFullError,
    DownloadError,
    InstallCancelledError,
    StoreError,
    WrongDigestError,
)
from orchestrator.models.keeper import differing
from orchestrator.models.manifest import content
from orchestrator.models.sources import OllamaSource, PackageSource, PathSource
from orchestrator.models.store import Store
from orchestrator.models.work import ProgressEvent, Work
from tests.fakes.package_index import PackageIndex
from tests.orchestrator.models.conftest import SOURCE, WEIGHTS, Shop, use_index
from tests.orchestrator.node.harness import eventually, is_running, processes_of

DIGEST = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
WRONG = "sha256:" + "0" * 64


def test_model_is_fetched_converted_and_described(index: PackageIndex, shop: Shop) -> None:
    assert shop.store.lookup(SOURCE, "1.0", DIGEST) is None

    model = shop.install("1.0", DIGEST)

    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    manifest = model.manifest
    assert manifest is not None
    assert (manifest.source, manifest.revision, manifest.digest) == (str(SOURCE), "1.0", DIGEST)
    assert manifest.files["model.safetensors"].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert set(manifest.files) == {"model.safetensors", "config.json"}
    assert model.path.parent.parent == shop.root / "models"
    assert shop.store.lookup(SOURCE, "1.0", DIGEST) == model
    assert model in shop.store.installed()
    assert [path.name for path in shop.root.glob("staging/*/*")] == ["lock"]


def test_progress_goes_through_the_phases_and_never_back(index: PackageIndex, shop: Shop) -> None:
    shop.install("1.0", DIGEST)

    phases = list(dict.fromkeys(event.phase for event in shop.events))
    assert phases == ["download", "extract", "convert", "verify"]
    for phase in phases:
        events = [event for event in shop.events if event.phase == phase]
        assert [event.done for event in events] == sorted(event.done for event in events)
        assert events[-1].done == events[-1].total
    assert next(event for event in shop.events if event.phase == "download").total == len(
        next(iter(index.files.values()))
    )


def test_second_install_does_nothing(index: PackageIndex, shop: Shop) -> None:
    first = shop.install("1.0", DIGEST)
    requests, shop.events[:] = len(index.requests), []

    assert shop.install("1.0", DIGEST) == first

    assert (len(index.requests), shop.conversions(), shop.events) == (requests, 1, [])


def test_newest_is_taken_and_noted_without_a_revision(index: PackageIndex, shop: Shop) -> None:
    index.add("tiny-model", "1.1", {f"tiny_model/{SOURCE.member}": b"GGUF newer"})

    model = shop.install(None)

    assert model.manifest is not None
    assert (model.manifest.requested, model.manifest.revision) == (None, "1.1")
    assert shop.store.lookup(SOURCE) == model
    assert shop.store.lookup(SOURCE, "1.1") == model
    assert shop.store.lookup(SOURCE, "1.0") is None
    assert shop.store.lookup(SOURCE, "1.1", WRONG) is None


def test_wrong_digest_is_fetched_once_more_and_then_refused(index: PackageIndex, shop: Shop) -> None:
    with pytest.raises(WrongDigestError, match=rf"tiny\.Q4_1\.gguf .* expected {WRONG}, found {DIGEST}") as caught:
        shop.install("1.0", WRONG)

    assert (caught.value.expected, caught.value.found) == (WRONG, DIGEST)
    assert len(index.requests) == 2
    assert shop.conversions() == 0
    shop.assert_nothing_installed()
    assert shop.install("1.0", DIGEST)


@pytest.mark.parametrize("hashes", [True, False])
def test_corrupt_download_is_fetched_again(index: PackageIndex, shop: Shop, hashes: bool) -> None:
    """With hashes in the index pip notices, without them the archive's own checksums or the pinned digest do."""
    index.hashes, index.corrupt = hashes, 1

    model = shop.install("1.0", DIGEST)

    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    assert len(index.requests) == 2


def test_download_that_stays_corrupt_is_an_error(index: PackageIndex, shop: Shop) -> None:
    index.corrupt = 100

    with pytest.raises(DamagedDownloadError, match="differs from what the index declares"):
        shop.install()

    shop.assert_nothing_installed()


def test_truncated_download_is_resumed(index: PackageIndex, shop: Shop) -> None:
    index.truncate = 2

    model = shop.install("1.0", DIGEST)

    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [asked for _, asked in index.requests]
    assert ranges[0] is None
    assert all(asked and asked != "bytes=0-" for asked in ranges[1:])


def test_download_that_stays_truncated_is_an_error(
    index: PackageIndex, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_RESUME_RETRIES", "1")
    index.truncate = 100

    with pytest.raises(DownloadError, match=r"tiny-model==1\.0 cannot be downloaded; pip said: .*then run apply again"):
        shop.install()

    shop.assert_nothing_installed()
    index.truncate = 0
    assert shop.install()


def test_missing_network_is_named_with_the_next_step(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    use_index(monkeypatch, "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    monkeypatch.setenv("PIP_RETRIES", "1")

    with pytest.raises(DownloadError) as caught:
        shop.install()

    text = str(caught.value)
    assert text.startswith("package tiny-model==1.0 cannot be downloaded; pip said: No matching distribution")
    assert "Connection refused" in text
    assert text.endswith("check the network or the index that pip is configured with, then run apply again")
    shop.assert_nothing_installed()


def test_index_that_refuses_is_named_with_the_next_step(index: PackageIndex, shop: Shop) -> None:
    index.refuse = True

    with pytest.raises(
        DownloadError, match=r"tiny-model==1\.0 cannot be downloaded; pip said: .*50[03] error.*run apply again"
    ):
        shop.install()

    shop.assert_nothing_installed()


@pytest.mark.parametrize("version", ["9.9", "1.0 --index-url=http://elsewhere", "-1", "", "../1"])
def test_version_that_is_not_there_or_not_a_version_is_refused(index: PackageIndex, shop: Shop, version: str) -> None:
    with pytest.raises(StoreError):
        shop.install(version)

    assert index.requests == []
    shop.assert_nothing_installed()


def install(shop: Shop, source: PackageSource | PathSource | OllamaSource) -> object:
    return shop.store.install(source, None, None, progress=shop.events.append, cancel=shop.cancel)


def test_member_must_be_the_only_one(index: PackageIndex, shop: Shop, tmp_path: Path) -> None:
    index.add("several", "1", {"a/one.gguf": b"GGUF 1", "b/one.gguf": b"GGUF 2", "../../out.gguf": b"GGUF 3"})

    with pytest.raises(StoreError, match=r"several such files.*a/one\.gguf, b/one\.gguf"):
        install(shop, PackageSource("several", "one.gguf"))
    with pytest.raises(StoreError, match=r"carries no two\.gguf; its largest files are"):
        install(shop, PackageSource("several", "two.gguf"))
    with pytest.raises(StoreError, match=r"no model \(config\.json\) in one\.bin; there are models in: none"):
        install(shop, PackageSource("several", "one.bin"))
    assert install(shop, PackageSource("several", "a/one.gguf"))
    assert install(shop, PackageSource("several", "out.gguf"))
    assert not list(tmp_path.glob("*.gguf"))


ENCODER = {
    "tiny_encoder/model/config.json": b"{}",
    "tiny_encoder/model/model.safetensors": WEIGHTS,
    "tiny_encoder/model/1_Pooling/config.json": b'{"word_embedding_dimension": 8}',
    "tiny_encoder/model/README.md": b"a card",
    "tiny_encoder/model/.gitattributes": b"hidden",
    "tiny_encoder/model/evil.py": b"raise SystemExit",
    "tiny_encoder/model/../../../escaped.json": b"{}",
    "tiny_encoder/__init__.py": b"",
}
WHOLE = PackageSource("tiny-encoder", "tiny_encoder/model")


def test_directory_of_a_package_is_installed_whole_and_as_it_came(index: PackageIndex, shop: Shop) -> None:
    index.add("tiny-encoder", "1.0", ENCODER)

    found = shop.store.install(WHOLE, "1.0", None, progress=shop.events.append, cancel=shop.cancel)

    assert found.manifest is not None
    assert set(found.manifest.files) == {"config.json", "model.safetensors", "1_Pooling/config.json", "README.md"}
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert found.loadable == found.path
    assert found.manifest.forms == ("mlx", "original")
    assert found.manifest.digest == f"sha256:{content(found.manifest.files)}"
    assert list(dict.fromkeys(event.phase for event in shop.events)) == ["download", "extract"]
    assert not list(shop.root.rglob("escaped.json"))
    assert not shop.runs.exists()


def test_digest_of_a_directory_is_that_of_all_its_files(index: PackageIndex, shop: Shop) -> None:
    index.add("tiny-encoder", "1.0", ENCODER)
    with pytest.raises(WrongDigestError) as refused:
        shop.store.install(WHOLE, "1.0", WRONG, progress=shop.events.append, cancel=shop.cancel)
    assert shop.store.lookup(WHOLE, "1.0") is None

    pinned = refused.value.found
    found = shop.store.install(WHOLE, "1.0", pinned, progress=shop.events.append, cancel=shop.cancel)
    assert shop.store.lookup(WHOLE, "1.0", pinned) == found


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("model", r"several such directories"),
        ("c/model", r"no model \(config\.json\) in c/model; there are models in: a/model, b/model"),
        ("b/model", r"no weights \(\.safetensors\) in b/model"),
    ],
)
def test_directory_that_is_no_model_is_refused(index: PackageIndex, shop: Shop, member: str, says: str) -> None:
    files = {"a/model/config.json": b"{}", "b/model/config.json": b"{}", "a/model/m.safetensors": b"x"}
    index.add("several", "1", files)
    with pytest.raises(StoreError, match=says):
        install(shop, PackageSource("several", member))


@pytest.mark.parametrize(("start", "text"), [(b"BAD", "it is not GGUF"), (b"DIE", r"exit code 7: a warning of some")])
def test_conversion_that_fails_leaves_nothing_and_says_why(
    index: PackageIndex, shop: Shop, start: bytes, text: str
) -> None:
    index.add("tiny-model", "2.0", {f"tiny_model/{SOURCE.member}": start})

    with pytest.raises(ConversionError, match=text):
        shop.install("2.0")

    shop.assert_nothing_installed()


def test_fetched_file_is_used_again_after_a_failed_conversion(index: PackageIndex, shop: Shop) -> None:
    data = b"BAD but pinned"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    index.add("tiny-model", "2.0", {f"tiny_model/{SOURCE.member}": data})
    for _ in range(2):
        with pytest.raises(ConversionError):
            shop.install("2.0", digest)

    assert len(index.requests) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount 3 MB: enough for the packed model twice, not for what conversion may write."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small tmpfs needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_download_that_will_not_fit_is_refused_before_it_arrives(
    index: PackageIndex, shop: Shop, small_disk: Path
) -> None:
    index.add("tiny-model", "3.0", {f"tiny_model/{SOURCE.member}": os.urandom(2_000_000)})
    index.stall = True  # it never ends, so only looking ahead can refuse it
    shop.root = small_disk / "store"

    with pytest.raises(DiskFullError, match=r"no room in .*need [\d,]+ bytes, free [\d,]+ bytes") as caught:
        shop.install("3.0")

    assert caught.value.need_bytes is not None
    assert caught.value.need_bytes > caught.value.free_bytes
    shop.assert_nothing_installed()
    assert [path.name for path in shop.root.glob("staging/*/*")] == ["lock"]


def test_disk_that_fills_up_on_the_way_leaves_nothing_and_gives_the_room_back(
    index: PackageIndex, shop: Shop, small_disk: Path
) -> None:
    index.add("tiny-model", "2.0", {f"tiny_model/{SOURCE.member}": b"BIG"})
    shop.root = small_disk / "store"

    with pytest.raises(DiskFullError, match=f"no room in {small_disk}"):
        shop.install("2.0")

    shop.assert_nothing_installed()
    assert [path.name for path in shop.root.glob("staging/*/*")] == ["lock"]
    assert shop.install("1.0", DIGEST)


def test_pip_without_room_is_understood(index: PackageIndex, shop: Shop, small_disk: Path) -> None:
    """The room vanishes after it was found to be enough: pip itself meets the full disk."""
    shop.root = small_disk / "store"

    def fill(event: ProgressEvent) -> None:
        if event.phase == "download" and not (small_disk / "filler").exists():
            with (small_disk / "filler").open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(65536)):
                        pass
                except OSError:
                    pass

    with pytest.raises(DiskFullError):
        shop.store.install(SOURCE, "1.0", DIGEST, progress=fill, cancel=shop.cancel)

    shop.assert_nothing_installed()


def test_cancelling_ends_a_stalled_download_and_its_processes(index: PackageIndex, shop: Shop) -> None:
    index.stall = True
    with ThreadPoolExecutor() as pool:
        running = pool.submit(shop.install)
        assert index.stalled.wait(120)

        shop.cancel.set()

        with pytest.raises(InstallCancelledError, match="run apply again"):
            running.result(timeout=120)
    eventually(lambda: processes_of(shop.root) == [])  # only the first of them is waited for when they are killed
    shop.assert_nothing_installed()


def test_interrupt_kills_the_tool(shop: Shop, tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.extend(int(word) for word in line.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Work(shop.events.append, shop.cancel).run(["sh", "-c", "sleep 1000 & echo $$ $!; wait"], interrupt)

    assert len(pids) == 2
    eventually(lambda: not any(is_running(pid) for pid in pids))


SLOW_INSTALL = """
import sys, threading
from pathlib import Path
from orchestrator.models.convert import Converter
from orchestrator.models.sources import parse_source
from orchestrator.models.store import Store
root, source, script = sys.argv[1:]
store = Store(Path(root), Converter("slow", lambda gguf, out: ["sh", "-c", script, "sh", str(gguf), str(out)]))
store.install(parse_source(source), "1.0", progress=lambda event: None, cancel=threading.Event())
"""


def test_killed_installer_leaves_nothing_and_its_tools_end_with_it(
    index: PackageIndex, shop: Shop, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    script = f"mkdir $2; echo half > $2/model.safetensors; sleep 1000 & echo $$ $! > {ready}; wait"
    argv = [sys.executable, "-c", SLOW_INSTALL, str(shop.root), str(SOURCE), script]
    with subprocess.Popen(argv) as installer:
        tools = [int(pid) for pid in eventually(lambda: ready.exists() and ready.read_text().split())]
        os.kill(installer.pid, signal.SIGKILL)
    shop.assert_nothing_installed()

    model = shop.install()

    # The lock is free when the last of them lets go of it, which is a moment before it is gone.
    eventually(lambda: not any(is_running(pid) for pid in tools))
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS


def test_installers_at_the_same_time_share_one_download(index: PackageIndex, shop: Shop) -> None:
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: shop.install("1.0", DIGEST), range(4)))

    assert len({model.path for model in models}) == 1
    assert (len(index.requests), shop.conversions()) == (1, 1)


def test_waiting_for_another_installer_can_be_cancelled(index: PackageIndex, shop: Shop) -> None:
    index.stall = True
    other = Shop(shop.root, shop.runs)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(other.install)
        assert index.stalled.wait(120)
        second = pool.submit(shop.install)

        shop.cancel.set()
        with pytest.raises(InstallCancelledError):
            second.result(timeout=120)
        other.cancel.set()
        with pytest.raises(InstallCancelledError):
            first.result(timeout=120)


def test_damage_is_noticed_and_mended(index: PackageIndex, shop: Shop) -> None:
    model = shop.install("1.0", DIGEST)
    weights = model.path / "model.safetensors"
    assert model.manifest is not None
    described = model.manifest.model_dump()["files"]
    assert differing(model.path, described) == []

    weights.write_bytes(b"X" + WEIGHTS[1:])
    assert differing(model.path, described) == ["model.safetensors"]
    assert shop.store.lookup(SOURCE, "1.0", DIGEST) == model  # cheap: sizes only

    weights.write_bytes(b"short")
    assert shop.store.lookup(SOURCE, "1.0", DIGEST) is None
    assert shop.install("1.0", DIGEST).path == model.path
    assert weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b'{"version": 2}'])
def test_model_with_a_torn_manifest_does_not_count(index: PackageIndex, shop: Shop, manifest: bytes) -> None:
    model = shop.install("1.0", DIGEST)
    (model.path / "manifest.json").write_bytes(manifest)

    assert shop.store.lookup(SOURCE, "1.0", DIGEST) is None
    assert model.path not in [each.path for each in shop.store.installed()]


def test_directory_of_the_user_is_used_in_place(shop: Shop, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with pytest.raises(StoreError, match=r"there is no directory .*mine; correct the model's `source`"):
        install(shop, PathSource(str(folder)))
    folder.mkdir()
    with pytest.raises(StoreError, match=r"there is no .*mine/config\.json"):
        install(shop, PathSource(str(folder)))
    (folder / "config.json").write_text("{}")

    model = shop.store.lookup(PathSource(str(folder)))

    assert model is not None
    assert (model.path, model.manifest) == (folder, None)
    assert not shop.root.exists()


def test_ollama_models_stay_where_they_are(shop: Shop) -> None:
    source = OllamaSource("nomic-embed-text:v1.5")

    assert shop.store.lookup(source) is None
    with pytest.raises(StoreError, match="through a helper"):
        install(shop, source)


def test_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match=f"{tmp_path}/file/staging.*: Not a directory"):
        Store(tmp_path / "file").install(SOURCE, progress=lambda _: None, cancel=threading.Event())


def test_importing_the_store_loads_no_hub_client() -> None:
    code = "import sys, orchestrator.models.store; print([m for m in sys.modules if m in ('huggingface_hub', 'mlx')])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == []

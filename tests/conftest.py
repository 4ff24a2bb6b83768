"""What all tests share: their own state directories, the real model, and golden files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from orchestrator.models.sources import parse_source
from orchestrator.models.store import Store
from schemas.compose import compose
from tests.engines import llama_server, quickstart_gguf

__all__ = ["llama_server", "quickstart_gguf"]
"""Fixtures that are written elsewhere."""

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"

# No test asserts a time, so none fails on a busy machine. The examples are the same at every run: a change is judged by
# what it changes. `EXPLORE=yes make test` looks at new ones; what it finds is as old as the test.
settings.register_profile(
    "repository",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("EXPLORE") != "yes",
)
settings.load_profile("repository")


# Whole modules are handed out to the workers (scripts/run-tests.sh). These start first: one that began last would keep
# its worker busy long after the others have nothing left to do.
LONG_MODULES = (
    "tests/e2e/",
    "tests/runtime/worker/test_group_",
    "tests/orchestrator/test_cli.py",
    "tests/orchestrator/test_models_cli.py",
    "tests/runtime/worker/",
    "tests/runtime/gateway/",
    "tests/properties/",
    "tests/orchestrator/models/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        found = (number for number, begin in enumerate(LONG_MODULES) if item.nodeid.startswith(begin))
        return next(found, len(LONG_MODULES))

    items.sort(key=place)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Write the golden files instead of comparing them.")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the state and the models of the user who runs it."""
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("ORCHESTRATE_CONF", raising=False)


class Golden:
    """Compares texts with files in tests/golden."""

    def __init__(self, update: bool) -> None:
        self._update = update

    def check(self, name: str, text: str) -> None:
        path = GOLDEN / name
        if self._update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.read_text() == text, f"{path} differs; look at it, then run with --update-golden"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def quickstart_cache() -> Path:
    """Return a store that holds the quickstart model, fetched once for all runs of the tests."""
    root = REPOSITORY / ".cache" / "tests"
    model = compose(REPOSITORY / "conf", "quickstart").stack.models["smollm2-135m-instruct"]
    Store(root).install(
        parse_source(model.source), model.revision, model.digest, progress=lambda _: None, cancel=threading.Event()
    )
    return root


@pytest.fixture(scope="session")
def quickstart_model_dir(quickstart_cache: Path) -> Path:
    """Return the MLX directory of the quickstart model."""
    model = compose(REPOSITORY / "conf", "quickstart").stack.models["smollm2-135m-instruct"]
    found = Store(quickstart_cache).lookup(parse_source(model.source), model.revision, model.digest)
    assert found is not None
    return found.path


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the MLX directory of a random model that answers within milliseconds; its heads divide by 2 and 3."""
    from tests.runtime.worker.tiny import write_model  # brings mlx, which most tests can do without

    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def quickstart_state(quickstart_cache: Path, tmp_path: Path) -> Path:
    """Return a state directory of this test's own whose store already holds the quickstart model."""
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    (state / "cache").symlink_to(quickstart_cache, target_is_directory=True)
    return state

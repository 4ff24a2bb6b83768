"""I/O: every client of this folder against every backend, and the table that is published of what was seen.

The tests need the package registries: without them they are skipped, with ORCHESTRATE_REQUIRE_CLIENTS=1 that is a
failure. Everything runs in one process and is started once (`make clients`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.models.sources import parse_source
from orchestrator.models.store import Store
from schemas.compose import compose
from tests.clients.environments import REQUIRED, missing
from tests.clients.outcomes import Outcomes
from tests.clients.serving import Serving, serving

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.clients)
    # The table is compared when everything else was tried.
    last = [item for item in mine if item.path.name == "test_table.py"]
    items[:] = [item for item in items if item not in last] + last


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory, quickstart_cache: Path, request: pytest.FixtureRequest
) -> Iterator[Serving]:
    """Everything that clients ask, up."""
    model = compose(REPOSITORY / "conf", "quickstart").stack.models["all-minilm-l6-v2"]
    Store(quickstart_cache).install(
        parse_source(model.source), model.revision, model.digest, progress=lambda _: None, cancel=threading.Event()
    )
    try:
        program: Path = request.getfixturevalue("llama_server")
    except pytest.skip.Exception as error:
        if REQUIRED:
            missing(str(error))
        raise
    gguf: Path = request.getfixturevalue("quickstart_gguf")
    with serving(tmp_path_factory.mktemp("clients"), quickstart_cache, program, gguf) as running:
        yield running


@pytest.fixture(scope="session")
def outcomes(stack: Serving) -> Outcomes:
    """What the programs of the clients have said so far; each is run once per backend, when it is first asked about."""
    return Outcomes(stack)

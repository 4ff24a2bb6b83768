"""One worker of the tiny model that most tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.worker.process import Worker


@pytest.fixture(scope="session")
def worker(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    log = tmp_path_factory.mktemp("worker") / "log"
    with Worker(tiny_model_dir, log, "--max-batch", "4", "--max-waiting", "8") as worker:
        yield worker.wait_ready()

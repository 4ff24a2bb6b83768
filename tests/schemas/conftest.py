"""A configuration directory to break: the shipped one, copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from schemas.compose import compose
from schemas.problems import ConfigurationError, Problem
from tests.quickstart import without_encoder

REPOSITORY = Path(__file__).resolve().parents[2]


class Conf:
    """A copy of `conf/` that tests edit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stack = root / "stacks" / "quickstart.yaml"

    def edit(self, before: str, after: str, file: str = "stacks/quickstart.yaml") -> None:
        """Replace text that must be there exactly once."""
        path = self.root / file
        text = path.read_text()
        assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {path}"
        path.write_text(text.replace(before, after))

    def append(self, text: str, file: str = "stacks/quickstart.yaml") -> None:
        path = self.root / file
        path.write_text(path.read_text() + text)

    def problems(self, *overrides: str, stack: str = "quickstart") -> tuple[Problem, ...]:
        """Compose, which must fail, and return the problems."""
        with pytest.raises(ConfigurationError) as caught:
            compose(self.root, stack, overrides)
        return caught.value.problems


@pytest.fixture
def conf(tmp_path: Path) -> Conf:
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    conf = Conf(tmp_path / "conf")
    conf.stack.write_text(without_encoder(conf.stack.read_text()))
    return conf

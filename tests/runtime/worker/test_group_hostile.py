"""No body ends, hangs or fools a group either: what rank 0 lets pass, every rank has to survive."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.worker import hostile
from tests.runtime.worker.group import Group
from tests.runtime.worker.test_hostile import NEXT, check_next, check_refused, send

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def group(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with Group(tiny_model_dir, tmp_path_factory.mktemp("group"), 2) as group:
        yield group.wait_ready()


def test_every_hostile_body_is_refused_by_name_and_computes_nothing_on_any_rank(group: Group) -> None:
    expected = group.lead.text_of(**NEXT)
    rounds = group.lead.status()["requests"]["completed"]
    for case in hostile.REFUSED:
        check_refused(send(group.lead, case), case.param)
    assert group.lead.status()["requests"]["completed"] == rounds
    check_next(group.lead, expected)


def test_what_may_be_asked_is_survived_by_every_rank(group: Group) -> None:
    expected, pids = group.lead.text_of(**NEXT), {rank: process.pid for rank, process in group.processes.items()}
    for case in hostile.SURVIVED:
        response = send(group.lead, case)
        assert response.status_code == 200 or 400 <= response.status_code < 500, (case.id, response.text)
        check_next(group.lead, expected)
    group.lead.wait_empty()
    assert {rank: process.pid for rank, process in group.processes.items() if process.poll() is None} == pids

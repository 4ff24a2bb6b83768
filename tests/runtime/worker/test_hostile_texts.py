"""No body ends, hangs or fools a worker of embeddings: see `test_hostile`, whose promises it shares."""

from collections.abc import Iterator

import pytest

from tests.runtime.worker import bodies, hostile_texts
from tests.runtime.worker.hostile import Case
from tests.runtime.worker.hostile_texts import EMBEDDINGS, RERANK
from tests.runtime.worker.process import Worker
from tests.runtime.worker.test_hostile import check_refused, send
from tests.runtime.worker.tiny_encoders import add_modules, write_bert

NEXT = {"input": ["the quick brown fox", "a"]}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    place = tmp_path_factory.mktemp("encoder")
    write_bert(place / "bert")
    add_modules(place / "bert", "mean_tokens")
    with Worker(place / "bert", place / "log", "--kind", "embedding", "--max-batch", "4") as worker:
        yield worker.wait_ready()


@pytest.fixture(scope="module")
def next_answer(encoder: Worker) -> list[list[float]]:
    """What the next request is answered, however hostile the one before it was."""
    return vectors(encoder)


def vectors(encoder: Worker) -> list[list[float]]:
    response = encoder.http.post(EMBEDDINGS, json=NEXT)
    assert response.status_code == 200, response.text
    return [entry["embedding"] for entry in response.json()["data"]]


def check_next(encoder: Worker, next_answer: list[list[float]]) -> None:
    assert encoder.process.poll() is None, encoder.text()
    assert vectors(encoder) == next_answer


@pytest.mark.parametrize("case", hostile_texts.REFUSED, ids=lambda case: case.id)
def test_it_is_refused_by_name_and_the_next_is_served(
    encoder: Worker, next_answer: list[list[float]], case: Case
) -> None:
    check_refused(send(encoder, case), case.param)
    check_next(encoder, next_answer)


@pytest.mark.parametrize("case", hostile_texts.SURVIVED, ids=lambda case: case.id)
def test_it_is_no_error_of_the_worker_and_the_next_is_served(
    encoder: Worker, next_answer: list[list[float]], case: Case
) -> None:
    response = send(encoder, case)
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    assert b"NaN" not in response.content
    check_next(encoder, next_answer)


@pytest.mark.parametrize("path", [EMBEDDINGS, RERANK])
def test_what_is_no_body_is_refused(encoder: Worker, next_answer: list[list[float]], path: str) -> None:
    for _, body in bodies.BROKEN:
        check_refused(encoder.http.post(path, content=body), None)
    check_next(encoder, next_answer)

"""No body ends, hangs or fools the worker: each is refused by the name of its fault, and the next request is served.

One real process takes all of them, one after another and some at once.
"""

import concurrent.futures
import json
import random
import time

import httpx
import pytest

from tests.runtime.worker import bodies, hostile
from tests.runtime.worker.hostile import CHAT, COMPLETIONS, Case
from tests.runtime.worker.process import Worker

NEXT = {"prompt": "the quick brown", "max_tokens": 4, "temperature": 0}
MINUTES_S = 300.0
"""What no answer may take on the busiest machine."""


def send(worker: Worker, case: Case) -> httpx.Response:
    # Our own JSON: httpx would refuse to write half a character.
    content = case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    return worker.http.post(case.path, content=content, timeout=MINUTES_S)


@pytest.fixture(scope="module")
def next_text(worker: Worker) -> str:
    """What the next request is answered, however hostile the one before it was."""
    return worker.text_of(**NEXT)


def check_next(worker: Worker, next_text: str) -> None:
    """Check that the worker serves, and generates what it always did."""
    assert worker.process.poll() is None, worker.text()
    assert worker.text_of(**NEXT) == next_text
    assert worker.http.get("/ready").status_code == 200


def check_refused(response: httpx.Response, param: str | None) -> None:
    """Check OpenAI's error shape, a 4xx, and the parameter's name."""
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) < 3000  # it does not throw the whole body back
    if param is not None:
        assert (error["param"] or "").replace("[", ".").split(".")[0] == param


def test_there_are_more_than_sixty() -> None:
    assert len({case.id for case in hostile.REFUSED}) == len(hostile.REFUSED) > 60


@pytest.mark.parametrize("case", hostile.REFUSED, ids=lambda case: case.id)
def test_it_is_refused_by_name_and_the_next_is_served(worker: Worker, next_text: str, case: Case) -> None:
    check_refused(send(worker, case), case.param)
    check_next(worker, next_text)


@pytest.mark.parametrize("case", hostile.SURVIVED, ids=lambda case: case.id)
def test_it_is_no_error_of_the_worker_and_the_next_is_served(worker: Worker, next_text: str, case: Case) -> None:
    response = send(worker, case)
    assert response.status_code == 200 or 400 <= response.status_code < 500, response.text
    check_next(worker, next_text)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_is_no_body_is_refused(worker: Worker, next_text: str, path: str) -> None:
    for _, body in bodies.BROKEN:
        check_refused(worker.http.post(path, content=body), None)
    check_next(worker, next_text)


def test_plain_mistakes_are_refused_by_name(worker: Worker) -> None:
    for path, wrong in ((CHAT, bodies.CHAT), (COMPLETIONS, bodies.COMPLETIONS)):
        for body, status, param in wrong:
            response = worker.http.post(path, content=json.dumps(body).encode())
            assert (response.status_code, response.json()["error"]["param"]) == (status, param), body
    for path, body, param in bodies.REFUSED_BY_THE_MODEL:
        response = worker.http.post(path, json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), body


def test_refusals_compute_nothing(worker: Worker, next_text: str) -> None:
    worker.wait_empty()
    before = worker.status()
    for case in hostile.LETHAL_TO_STOCK:
        send(worker, case)
    after = worker.status()
    assert (after["requests"], after["tokens"]["generated"]) == (before["requests"], before["tokens"]["generated"])
    check_next(worker, next_text)


def test_all_at_once_beside_a_request_that_is_none(worker: Worker, next_text: str) -> None:
    """A stream goes on and ends as it should while everything hostile arrives in random order."""
    cases = [*hostile.REFUSED, *hostile.SURVIVED]
    random.Random(3).shuffle(cases)
    body = {"prompt": "the quick brown", "max_tokens": 300, "temperature": 0}
    alone = worker.text_of(**body)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        beside = pool.submit(worker.text_of, **body)
        sent = list(pool.map(lambda case: send(worker, case).status_code, cases))
        assert beside.result() == alone
    assert {status for status in sent if status >= 500} <= {503}  # its places are counted
    check_next(worker, next_text)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 4}, {"max_tokens": (1 << 31) - 1}, {"logprobs": 5}],
    ids=["plain", "choices", "endless", "logprobs"],
)
def test_a_stream_whose_client_left_holds_nothing(
    worker: Worker, next_text: str, seed: int | None, fields: dict[str, int]
) -> None:
    """What wedges stock: a seeded stream, then a disconnection; also again and again, and before the first token."""
    body = {"prompt": "the quick", "max_tokens": 20_000, "stream": True, "seed": seed, **fields}
    for patience_s in (None, 0.02, 0.002):
        with worker.sending(COMPLETIONS, body) as connection:
            if patience_s is None:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            else:
                time.sleep(patience_s)  # wherever the request is by then
    worker.wait_empty()
    check_next(worker, next_text)

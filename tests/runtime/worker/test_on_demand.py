"""Models that are loaded when they are asked for: real worker processes that share a node's memory."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtime.worker.process import Worker, wait_until
from tests.runtime.worker.tiny_encoders import write_bert

WAIT = {"prefer": "wait=60"}
LONG = 20_000
"""Tokens that the tiny model does not give within the tests' other steps; greedily, or it may end at any of them."""


class Node:
    """A directory in which on-demand workers meet, and the workers."""

    def __init__(self, root: Path, model_dir: Path) -> None:
        self.root = root
        self.model_dir = model_dir
        self.workers: list[Worker] = []
        self.allot(1.0)

    def allot(self, memory_gib: float) -> None:
        """Say how much memory the workers have together."""
        (self.root / "budget.json").write_text(json.dumps({"memory_gib": memory_gib + 2, "set_aside_gib": 2}))

    def worker(
        self, service: str, *more: str, memory_gib: float = 0.6, model_dir: Path | None = None, token: str | None = None
    ) -> Worker:
        """Start a worker; two of the usual size do not fit together."""
        arguments = ["--on-demand", "--service", service, "--room", str(self.root / "room")]
        arguments += ["--budget", str(self.root / "budget.json"), "--memory-gib", str(memory_gib)]
        worker = Worker(model_dir or self.model_dir, self.root / f"{service}.log", *arguments, *more, token=token)
        self.workers.append(worker)
        return worker

    def key(self, worker: Worker) -> str:
        """Return what a neighbour shows to a worker."""
        entries = [json.loads(path.read_text()) for path in (self.root / "room" / "workers").glob("*.json")]
        return next(str(entry["key"]) for entry in entries if entry["pid"] == worker.process.pid)

    def close(self) -> None:
        for worker in self.workers:
            worker.__exit__()


@pytest.fixture
def node(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Node]:
    node = Node(tmp_path, tiny_model_dir)
    yield node
    node.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Node]:
    """Return a node with two workers, of which one at a time fits."""
    node = Node(tmp_path_factory.mktemp("shared"), tiny_model_dir)
    node.worker("one")
    node.worker("two")
    yield node
    node.close()


@pytest.fixture
def pair(shared: Node) -> tuple[Node, Worker, Worker]:
    """Return the node and its workers, both cold, with memory for one."""
    one, two = shared.workers
    for worker in (one, two):
        if phase(worker) != "cold":
            assert ask(worker, WAIT).status_code == 200  # a model that was not used yet stays for a while
            assert worker.http.post("/unload", headers={"authorization": f"Bearer {shared.key(worker)}"}).is_success
    shared.allot(1.0)
    return shared, one, two


def ask(worker: Worker, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    request = {"prompt": "the quick brown fox", "max_tokens": 2, "temperature": 0, **body}
    return worker.http.post("/v1/completions", json=request, headers=headers or {})


def ready(worker: Worker) -> dict[str, Any]:
    answer = worker.http.get("/ready")
    assert answer.status_code == 200  # it takes requests, whether or not its model is in memory
    found: dict[str, Any] = answer.json()
    return found


def phase(worker: Worker) -> str:
    return str(ready(worker)["phase"])


def memory_in_use(worker: Worker) -> dict[str, Any]:
    """Ask the worker and return what its memory holds before it has been idle for long enough to drop its model."""
    while True:
        assert ask(worker, WAIT).status_code == 200
        seen = worker.status()
        if seen["phase"] == "ready":
            memory: dict[str, Any] = seen["memory"]
            return memory


def wait_phase(worker: Worker, wanted: str) -> None:
    wait_until(lambda: phase(worker) == wanted, f"the worker is {wanted}")


@pytest.mark.slow
def test_counting_tokens_loads_the_model_as_other_requests_do(pair: tuple[Node, Worker, Worker]) -> None:
    _, worker, _ = pair
    refused = worker.http.post("/tokenize", json={"prompt": "the quick brown fox"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
    counted = worker.http.post("/tokenize", json={"prompt": "the quick brown fox"}, headers=WAIT)
    assert counted.status_code == 200
    assert counted.json()["count"] == ask(worker, WAIT).json()["usage"]["prompt_tokens"]


@pytest.mark.slow
def test_a_request_loads_the_model_and_idleness_drops_it(node: Node) -> None:
    worker = node.worker("one", "--idle-stop-s", "5")
    assert (phase(worker), ready(worker)["is_ready"], worker.status()["phase"]) == ("cold", False, "cold")
    refused = ask(worker)
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    body = refused.json()
    assert body["error"]["code"] == "model_loading"
    assert body["loading"]["phase"] in {"loading", "warming"}
    assert body["loading"]["eta_s"] >= 1

    def loaded() -> dict[str, Any] | None:
        """Return the report of a worker that has loaded by itself; of a later moment, where it was idle meanwhile."""
        report = ready(worker)
        return report if report["on_demand"]["loads"] else None

    report = wait_until(loaded, "the model is loaded")
    assert report["is_ready"] == (report["phase"] == "ready")
    assert report["load_s"] > 0
    assert report["on_demand"]["loads"] == 1
    assert memory_in_use(worker)["active_bytes"] > 0
    wait_phase(worker, "cold")
    assert worker.status()["memory"]["active_bytes"] < 1000
    first, loads = worker.status()["requests"], ready(worker)["on_demand"]["loads"]
    answer = ask(worker, WAIT)
    assert answer.status_code == 200
    assert ready(worker)["on_demand"]["loads"] == loads + 1
    assert worker.status()["requests"]["completed"] == first["completed"] + 1  # counters outlive the engines
    worker.terminate()
    assert worker.wait_exit() == 0
    assert not list((node.root / "room" / "workers").iterdir())


@pytest.mark.slow
def test_many_who_wake_it_at_once_load_it_once_and_get_the_same_answer(pair: tuple[Node, Worker, Worker]) -> None:
    _, worker, _ = pair
    before = ready(worker)["on_demand"]["loads"]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: ask(worker, WAIT), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    assert ready(worker)["on_demand"]["loads"] == before + 1


@pytest.mark.slow
def test_looking_wakes_nobody_and_is_no_use(node: Node) -> None:
    worker = node.worker("one", "--idle-stop-s", "2")
    probe = {"x-orchestrate-probe": "1", **WAIT}
    for _ in range(3):
        answer = ask(worker, probe)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_cold")
        for path in ("/health", "/ready", "/status", "/v1/models"):
            assert worker.http.get(path).status_code == 200
    assert (phase(worker), ready(worker)["on_demand"]["loads"]) == ("cold", 0)
    assert ask(worker, WAIT).status_code == 200

    def probed_until_cold() -> bool:
        return ask(worker, probe).status_code == 503

    wait_until(probed_until_cold, "the model is dropped although probes look at it all the time")
    assert ready(worker)["on_demand"]["loads"] == 1


@pytest.mark.slow
def test_two_with_memory_for_one_make_room_for_each_other(pair: tuple[Node, Worker, Worker]) -> None:
    node, one, two = pair
    assert ask(one, WAIT).status_code == 200
    assert ask(two, WAIT).status_code == 200
    assert (phase(one), phase(two)) == ("cold", "ready")
    assert ask(one, WAIT).status_code == 200
    assert (phase(one), phase(two)) == ("ready", "cold")
    node.allot(2.0)  # read before every load: nobody is started again for it
    assert ask(two, WAIT).status_code == 200
    assert (phase(one), phase(two)) == ("ready", "ready")


@pytest.mark.slow
def test_a_model_in_use_stays_and_the_refusal_names_it(pair: tuple[Node, Worker, Worker]) -> None:
    _, one, two = pair
    assert ask(one, WAIT).status_code == 200
    body = {"model": "tiny", "prompt": "the", "max_tokens": LONG, "stream": True, "temperature": 0}
    with one.http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        refused = ask(two)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_memory")
        assert "'one' 0.6 GiB (in use)" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"]
        assert (phase(one), phase(two)) == ("ready", "cold")
        assert "'one'" in ready(two)["on_demand"]["failure"]
        next(lines)  # it goes on
    # The client has left: who waits gets the memory as soon as it is free.
    assert ask(two, WAIT).status_code == 200
    assert (phase(one), phase(two)) == ("cold", "ready")


@pytest.mark.slow
def test_a_model_that_nobody_has_used_yet_is_not_pushed_out_before_its_client_came_back(
    pair: tuple[Node, Worker, Worker],
) -> None:
    _, one, two = pair
    assert ask(one).status_code == 503
    wait_phase(one, "ready")
    assert ask(two).json()["error"]["code"] == "no_memory"
    assert ask(one).status_code == 200
    assert ask(two, WAIT).status_code == 200


@pytest.mark.slow
def test_a_model_that_never_fits_says_so(pair: tuple[Node, Worker, Worker]) -> None:
    node, worker, _ = pair
    node.allot(0.4)
    refused = ask(worker, {"prefer": "wait=1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_memory")
    assert "'one' needs 0.6 GiB; this node leaves 0.4 GiB" in refused.json()["error"]["message"]


@pytest.mark.slow
def test_what_a_killed_worker_held_is_free(pair: tuple[Node, Worker, Worker]) -> None:
    node, _, two = pair
    killed = node.worker("killed")
    node.workers.remove(killed)
    assert ask(killed, WAIT).status_code == 200
    killed.process.send_signal(signal.SIGKILL)
    killed.wait_exit()
    killed.http.close()
    assert len(list((node.root / "room" / "workers").glob("*.json"))) == 3
    assert ask(two, WAIT).status_code == 200
    assert len(list((node.root / "room" / "workers").glob("*.json"))) == 2


@pytest.mark.slow
def test_models_of_all_kinds_make_room_for_each_other(pair: tuple[Node, Worker, Worker], tmp_path: Path) -> None:
    node, chat, _ = pair
    write_bert(tmp_path / "bert")
    embed = node.worker("embed", "--kind", "embedding", model_dir=tmp_path / "bert")
    try:
        request = {"model": "tiny", "input": "a text"}
        refused = embed.http.post("/v1/embeddings", json=request)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
        first = embed.http.post("/v1/embeddings", json=request, headers=WAIT)
        assert first.status_code == 200
        assert ask(chat, WAIT).status_code == 200
        assert (phase(embed), phase(chat)) == ("cold", "ready")
        again = embed.http.post("/v1/embeddings", json=request, headers=WAIT)
        assert again.json()["data"] == first.json()["data"]
        assert (phase(embed), phase(chat)) == ("ready", "cold")
    finally:
        node.workers.remove(embed)
        embed.__exit__()


@pytest.mark.slow
def test_only_a_neighbour_can_take_the_memory(pair: tuple[Node, Worker, Worker]) -> None:
    node, worker, _ = pair
    assert ask(worker, WAIT).status_code == 200
    for wrong in ({}, {"authorization": "Bearer nothing"}):
        assert worker.http.post("/unload", headers=wrong).status_code == 401
    assert phase(worker) == "ready"
    for path in [node.root / "room", *(node.root / "room").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    answer = worker.http.post("/unload", headers={"authorization": f"Bearer {node.key(worker)}"})
    assert answer.json() == {"unloaded": True}
    assert phase(worker) == "cold"


@pytest.mark.slow
def test_a_load_that_fails_says_why_and_is_tried_again(node: Node, tmp_path: Path, tiny_model_dir: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    weights = broken / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(b"no weights")
    worker = node.worker("one", model_dir=broken)
    failed = ask(worker, WAIT)
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "model_failed")
    again = ask(worker)  # at once: the backoff is told, nothing is loaded
    assert again.json()["error"]["code"] == "model_failed"
    assert int(again.headers["retry-after"]) <= 5
    assert (phase(worker), worker.process.poll()) == ("cold", None)
    assert ready(worker)["on_demand"]["failure"] in again.json()["error"]["message"]
    weights.write_bytes(good)
    wait_until(lambda: ask(worker, WAIT).status_code == 200, "the mended model is loaded")
    assert ready(worker)["on_demand"]["failure"] is None


@pytest.mark.slow
def test_the_memory_of_a_real_model_goes_back_to_the_system(node: Node, quickstart_model_dir: Path) -> None:
    worker = node.worker("one", "--idle-stop-s", "4", memory_gib=0.5, model_dir=quickstart_model_dir)
    threads = set()
    for _ in range(3):
        loaded = memory_in_use(worker)
        wait_phase(worker, "cold")
        dropped = worker.status()["memory"]
        assert dropped["active_bytes"] + dropped["cache_bytes"] < 1000
        assert loaded["rss_bytes"] - dropped["rss_bytes"] > 0.7 * loaded["model_bytes"]
        threads.add(len(list(Path(f"/proc/{worker.process.pid}/task").iterdir())))
    assert max(threads) - min(threads) <= 1  # MLX leaves threads behind for every thread that computes
    ask(worker)
    worker.terminate()  # in the middle of a load
    assert worker.wait_exit() == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--on-demand"], "--on-demand needs --room"),
        (["--idle-stop-s", "5"], "--idle-stop-s goes with --on-demand only"),
        (["--room", "/tmp/room"], "--room goes with --on-demand only"),
        (["--on-demand", "--room", "/tmp/room", "--size", "2"], "--size"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], says: str, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime.worker.arguments import parse

    with pytest.raises(SystemExit):
        parse(["--model-dir", str(tiny_model_dir), "--name", "tiny", "--port", "0", *arguments])
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_an_unload_reads_no_body_and_has_a_door_at_on_demand_workers_only(node: Node) -> None:
    worker = node.worker("one", token="secret")
    url = worker.http.base_url
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        # The answer does not wait for a body of which nothing has come.
        connection.sendall(b"POST /unload HTTP/1.1\r\nhost: w\r\ncontent-length: 60000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
    # Who has the worker's own token, as the orchestrator, needs no key of a neighbour.
    assert ask(worker, WAIT).status_code == 200
    assert httpx.post(f"{url}/unload", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert phase(worker) == "ready"
    assert worker.http.post("/unload").json() == {"unloaded": True}
    assert phase(worker) == "cold"
    always = Worker(node.model_dir, node.root / "always.log", token="secret")
    with always:
        assert always.http.post("/unload").status_code == 404
        anonymous = httpx.post(f"{always.http.base_url}/unload")
        assert anonymous.status_code in {401, 404}

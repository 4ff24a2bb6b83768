"""The worker as a process: how it starts, refuses to start, drains and dies."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.runtime.worker.process import DEADLINE_S, Worker, wait_idle, wait_until


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a worker that is expected to end by itself."""
    command = [sys.executable, "-m", "runtime.worker", "--name", "tiny", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_an_open_address_without_a_token_is_refused(tiny_model_dir: Path) -> None:
    finished = run("--model-dir", str(tiny_model_dir), "--host", "0.0.0.0", "--port", "0")
    assert finished.returncode == 2
    assert "ORCHESTRATE_WORKER_TOKEN" in finished.stderr


def test_a_taken_port_is_named(tiny_model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        finished = run("--model-dir", str(tiny_model_dir), "--port", str(port))
    assert finished.returncode == 1
    assert f"port {port}" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_model_that_does_not_load_ends_the_process(tmp_path: Path) -> None:
    finished = run("--model-dir", str(tmp_path / "nothing"), "--port", "0")
    assert finished.returncode == 1
    assert "nothing" in finished.stderr


@pytest.fixture(scope="module")
def guarded(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Return a worker with a token."""
    with Worker(tiny_model_dir, tmp_path_factory.mktemp("guarded") / "log", token="sesame") as worker:
        yield worker.wait_ready()


def test_the_token_guards_everything_but_health(guarded: Worker) -> None:
    paths = ["/ready", "/status", "/v1/models", "/v1/chat/completions", "/nope"]
    for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sesame"}, {"authorization": "Bearer é"}):
        with httpx.Client(base_url=guarded.http.base_url, timeout=DEADLINE_S) as stranger:
            raw = {name: value.encode() for name, value in header.items()}
            assert stranger.get("/health", headers=raw).status_code == 200
            for path in paths:
                response = stranger.get(path, headers=raw)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
    assert guarded.complete(prompt="a", max_tokens=2).status_code == 200
    assert "sesame" not in guarded.text()


def test_a_stranger_is_refused_before_its_body_is_read(guarded: Worker) -> None:
    url = guarded.http.base_url
    with socket.create_connection((url.host, url.port), timeout=DEADLINE_S) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def last_data(lines: Iterator[str]) -> tuple[str, str]:
    """Read a stream to its end; return its last two data fields."""
    datas = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return datas[-2], datas[-1]


def test_term_lets_a_running_request_finish(tiny_model_dir: Path, tmp_path: Path) -> None:
    with Worker(tiny_model_dir, tmp_path / "log", "--drain-s", "600") as worker:
        worker.wait_ready()
        body = {"prompt": "the quick brown fox", "max_tokens": 800, "temperature": 0, "stream": True}
        with worker.http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            worker.terminate()
            finish, done = last_data(lines)
        assert done == "[DONE]"
        assert json.loads(finish)["choices"][0]["finish_reason"] == "length"
        assert worker.wait_exit() == 0


LONG = {"prompt": "the quick brown fox", "max_tokens": 25_000, "temperature": 0, "stream": True}


def test_a_drain_ends_what_takes_too_long(tiny_model_dir: Path, tmp_path: Path) -> None:
    with Worker(tiny_model_dir, tmp_path / "log", "--drain-s", "0.5") as worker:
        worker.wait_ready()
        with worker.http.stream("POST", "/v1/completions", json=LONG) as response:
            lines = response.iter_lines()
            next(lines)
            worker.terminate()
            _, last = last_data(lines)
        assert json.loads(last)["error"]["type"] == "server_error"
        assert worker.wait_exit() == 0


def test_a_drain_admits_nobody_and_ends_with_the_last_request(tiny_model_dir: Path, tmp_path: Path) -> None:
    with Worker(tiny_model_dir, tmp_path / "log", "--drain-s", "600") as worker:
        worker.wait_ready()
        with (
            httpx.Client(base_url=worker.http.base_url, timeout=DEADLINE_S) as other,
            worker.http.stream("POST", "/v1/completions", json=LONG) as response,
        ):
            lines = response.iter_lines()  # as long as it is held, the connection stays
            next(lines)
            worker.terminate()
            wait_until(lambda: other.get("/ready").json()["phase"] == "draining", "it drains")
            refused = other.post("/v1/completions", json={"prompt": "a"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert int(refused.headers["retry-after"]) >= 1
        assert worker.wait_exit() == 0


def test_an_idle_worker_uses_no_cpu(worker: Worker) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc on this system")
    worker.wait_empty()
    wait_idle([worker.process.pid], 2, 0.1)  # polling for work at 1 kHz would use more

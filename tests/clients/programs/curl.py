"""I/O: plain curl: what people paste from a documentation."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from scenarios import FRANCE, Setting, main, scenario


def curl(*arguments: str) -> tuple[int, str, str]:
    """Return status, content type and body of one request."""
    argv = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "120", "--noproxy", "*"]
    done = subprocess.run(
        [*argv, "--write-out", "\n%{http_code} %{content_type}", *arguments],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    body, _, last = done.stdout.rpartition("\n")
    status, _, kind = last.partition(" ")
    return int(status), kind, body


def post(url: str, body: object, *more: str) -> tuple[int, str, str]:
    text = body if isinstance(body, str) else json.dumps(body)
    return curl(url, "--header", "Content-Type: application/json", "--data", text, *more)


def body_of(setting: Setting, **more: Any) -> dict[str, Any]:
    return {"model": setting.model, "messages": FRANCE, "max_tokens": 8, "temperature": 0, **more}


@scenario("/v1/chat/completions, whole and as events")
def chat(setting: Setting) -> None:
    url = f"{setting.url}/v1/chat/completions"
    status, kind, text = post(url, body_of(setting))
    assert (status, kind.split(";")[0]) == (200, "application/json")
    said = json.loads(text)["choices"][0]["message"]["content"]
    status, kind, text = post(url, body_of(setting, stream=True))
    assert (status, kind.split(";")[0]) == (200, "text/event-stream")
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == said


@scenario("/v1/chat/completions without a content type, as curl sends it by itself")
def no_type(setting: Setting) -> None:
    status, _, _ = curl(f"{setting.url}/v1/chat/completions", "--data", json.dumps(body_of(setting, max_tokens=2)))
    assert status == 200


@scenario("/v1/models")
def models(setting: Setting) -> None:
    status, _, text = curl(f"{setting.url}/v1/models")
    assert status == 200
    assert setting.model in {each["id"] for each in json.loads(text)["data"]}


@scenario("/v1/embeddings", needs="embedding")
def embeddings(setting: Setting) -> None:
    status, _, text = post(f"{setting.url}/v1/embeddings", {"model": setting.embedding, "input": "hi"})
    assert status == 200
    assert len(json.loads(text)["data"][0]["embedding"]) == setting.dimensions


@scenario("/v1/rerank", needs="reranking")
def rerank(setting: Setting) -> None:
    documents = ["Bread is baked.", {"text": "Paris is the capital of France."}, "The sea is deep."]
    asked = {"model": setting.reranking, "query": "What is the capital of France?", "documents": documents, "top_n": 2}
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        status, _, text = post(f"{setting.url}{path}", {**asked, "return_documents": True})
        assert status == 200
        results = json.loads(text)["results"]
        assert len(results) == 2
        assert results[0]["index"] == 1
        assert results[0]["relevance_score"] >= results[1]["relevance_score"]


@scenario("/api/chat and /api/generate, as NDJSON")
def ollama(setting: Setting) -> None:
    for path, ask in (("chat", {"messages": FRANCE}), ("generate", {"prompt": "Hello."})):
        body = {"model": setting.model, **ask, "options": {"num_predict": 4}}
        status, kind, text = post(f"{setting.url}/api/{path}", body)
        assert (status, kind.split(";")[0]) == (200, "application/x-ndjson"), (status, kind, text)
        parts = [json.loads(line) for line in text.splitlines()]
        assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]


@scenario("/api/version, /api/tags and / as Ollama answers them")
def ollama_lists(setting: Setting) -> None:
    assert json.loads(curl(f"{setting.url}/api/version")[2])["version"]
    assert json.loads(curl(f"{setting.url}/api/tags")[2])["models"]
    assert curl(f"{setting.url}/")[2] == "Ollama is running"
    assert curl(f"{setting.url}/", "--head")[0] == 200


@scenario("/v1/messages")
def messages(setting: Setting) -> None:
    head = ("--header", "anthropic-version: 2023-06-01", "--header", "x-api-key: unused")
    status, _, text = post(f"{setting.url}/v1/messages", body_of(setting), *head)
    assert status == 200
    assert json.loads(text)["content"][0]["text"]
    status, kind, text = post(f"{setting.url}/v1/messages", body_of(setting, stream=True), *head)
    assert (status, kind.split(";")[0]) == (200, "text/event-stream")
    assert text.rstrip().endswith('{"type":"message_stop"}') or '"message_stop"' in text.splitlines()[-2]


@scenario("each protocol's own errors: malformed JSON, a model that is not there, a path that is not, a wrong method")
def errors(setting: Setting) -> None:
    def shape(path: str, told: Any) -> bool:
        if path.startswith("/api"):
            return isinstance(told["error"], str)
        if path.startswith("/v1/messages"):
            return bool(told["type"] == "error" and told["error"]["type"] and told["error"]["message"])
        return set(told["error"]) >= {"message", "type", "param", "code"}

    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
        for body, wanted in (("{", 400), ("[]", 400), (body_of(setting, model="none"), 404)):
            status, _, text = post(f"{setting.url}{path}", body)
            assert (status, shape(path, json.loads(text))) == (wanted, True), (path, status, text)
        status, _, text = curl(f"{setting.url}{path}", "--request", "PUT")
        assert (status, shape(path, json.loads(text))) == (405, True), (path, status, text)
        status, _, text = curl(f"{setting.url}{path}/nowhere")
        assert (status, shape(path, json.loads(text))) == (404, True), (path, status, text)


@scenario("keys: 401 without one, Bearer and x-api-key")
def keys(setting: Setting) -> None:
    url = f"{setting.keyed_url}/v1/models"
    assert curl(url)[0] == 401
    assert curl(url, "--header", f"Authorization: Bearer {setting.key}")[0] == 200
    assert curl(url, "--header", f"x-api-key: {setting.key}")[0] == 200
    assert curl(url, "--header", "Authorization: Bearer wrong")[0] == 401


if __name__ == "__main__":
    main()

"""I/O: the calls of Open WebUI, in the shapes that its backend sends.

Read in github.com/open-webui/open-webui: backend/open_webui/routers/ollama.py and openai.py (lists, checks of a
connection, chats), utils/task.py and utils/middleware.py (titles), retrieval/utils.py (vectors), and
retrieval/models/external.py (order of documents). Open WebUI itself is no small thing to install: its requests are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from scenarios import FRANCE, Setting, main, scenario

HEAD = {
    "Content-Type": "application/json",
    "X-OpenWebUI-User-Name": "J%C3%BCrgen Example",
    "X-OpenWebUI-User-Id": "7b1b0b0e-0000-4000-8000-000000000001",
    "X-OpenWebUI-User-Email": "user@example.com",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "c0ffee00-0000-4000-8000-000000000002",
}
DESCRIPTION = {"params": {}, "features": {"image_generation": False, "web_search": False}, "session_id": "s", "id": "m"}
"""What its page adds to the form of a chat; `extra: allow` lets it through to Ollama."""


def send(setting: Setting, method: str, path: str, body: Mapping[str, Any] | None, **head: str) -> tuple[int, str]:
    """Return status and text. By urllib: others refuse to send `Bearer ` without a key, as Open WebUI does."""
    content = None if body is None else json.dumps(body).encode()
    asked = Request(f"{setting.url}{path}", content, {**HEAD, **head}, method=method)
    try:
        with build_opener(ProxyHandler({})).open(asked, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def get(setting: Setting, path: str, **head: str) -> Any:
    status, text = send(setting, "GET", path, None, **head)
    assert status == 200, (status, text)
    return json.loads(text)


def post(setting: Setting, path: str, body: Mapping[str, Any], **head: str) -> str:
    status, text = send(setting, "POST", path, body, **head)
    assert status == 200, (status, text)
    return text


@scenario("an Ollama connection is checked and its models are listed")
def connection(setting: Setting) -> None:
    # It compares versions as numbers, and refuses what is older than it needs.
    version = get(setting, "/api/version")["version"]
    assert tuple(int(part) for part in version.split("-")[0].split(".")) >= (0, 6, 4)
    models = get(setting, "/api/tags")["models"]
    for model in models:
        assert model["model"] and model["name"]
        assert {"size", "digest", "modified_at", "details"} <= set(model)
    assert f"{setting.model}:latest" in {model["model"] for model in models}
    loaded = get(setting, "/api/ps")["models"]
    assert all(model["name"] and "expires_at" in model for model in loaded)


@scenario("a model is described")
def described(setting: Setting) -> None:
    shown = json.loads(
        post(setting, "/api/show", {"model": f"{setting.model}:latest", "name": f"{setting.model}:latest"})
    )
    assert "completion" in shown["capabilities"]
    assert {"details", "model_info", "template", "parameters"} <= set(shown)


@scenario("an Ollama chat, streamed")
def ollama_chat(setting: Setting) -> None:
    body = {
        "model": f"{setting.model}:latest", "messages": FRANCE, "stream": True,
        "options": {"temperature": 0, "num_predict": 8, "num_ctx": 2048, "repeat_penalty": 1.1, "num_thread": 2},
        "keep_alive": "5m", **DESCRIPTION,
    }  # fmt: skip
    parts = [json.loads(line) for line in post(setting, "/api/chat", body).splitlines()]
    assert parts[-1]["done"] is True
    assert {"total_duration", "prompt_eval_count", "eval_count", "eval_duration"} <= set(parts[-1])
    assert "".join(part["message"]["content"] for part in parts)


@scenario("a title, by Ollama and by OpenAI")
def title(setting: Setting) -> None:
    metadata = {"task": "title_generation", "chat_id": "c0ffee00-0000-4000-8000-000000000002"}
    body = {"model": setting.model, "messages": FRANCE, "stream": False}
    told = json.loads(post(setting, "/api/chat", {**body, "options": {"num_predict": 8}}))
    assert told["message"]["content"]
    told = json.loads(post(setting, "/v1/chat/completions", {**body, "max_completion_tokens": 8, "metadata": metadata}))
    assert told["choices"][0]["message"]["content"]


@scenario("a model is unloaded: told, never done behind the stack's back")
def unload(setting: Setting) -> None:
    body = {"model": f"{setting.model}:latest", "keep_alive": 0, "prompt": ""}
    told = json.loads(post(setting, "/api/generate", {**body, "stream": False}))
    assert told["done"] is True
    assert get(setting, "/v1/models")["data"]


@scenario("models are not pulled, created or deleted by it")
def management(setting: Setting) -> None:
    for path, body in (
        ("/api/pull", {"model": "llama3.2", "insecure": True}),
        ("/api/create", {"model": "mine", "stream": True}),
        ("/api/copy", {"source": setting.model, "destination": "other"}),
    ):
        status, text = send(setting, "POST", path, body)
        assert status == 403, (status, text)
        assert "managed by the stack files" in json.loads(text)["error"]
    assert send(setting, "DELETE", "/api/delete", {"model": setting.model})[0] == 403


@scenario("an OpenAI connection is checked and its models are listed")
def openai_connection(setting: Setting) -> None:
    models = get(setting, "/v1/models", Authorization="Bearer unused")
    assert models["object"] == "list"
    assert setting.model in {model["id"] for model in models["data"]}


@scenario("an OpenAI chat, streamed")
def openai_chat(setting: Setting) -> None:
    body = {
        "model": setting.model, "messages": FRANCE, "stream": True, "stream_options": {"include_usage": True},
        "max_tokens": 8, "temperature": 0,
    }  # fmt: skip
    lines = post(setting, "/v1/chat/completions", body, Authorization="Bearer unused").splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] > 0


@scenario("vectors of documents, by Ollama and by OpenAI", needs="embedding")
def vectors(setting: Setting) -> None:
    body = {"input": ["a cat", "quantum physics"], "model": setting.embedding}
    told = json.loads(post(setting, "/api/embed", body, Authorization="Bearer "))
    assert [len(vector) for vector in told["embeddings"]] == [setting.dimensions] * 2
    told = json.loads(post(setting, "/v1/embeddings", body, Authorization="Bearer unused"))
    assert [len(each["embedding"]) for each in told["data"]] == [setting.dimensions] * 2


@scenario("documents are ordered by an external reranker", needs="reranking")
def reranked(setting: Setting) -> None:
    documents = ["Bread is baked.", "Paris is the capital of France."]
    body = {"model": setting.reranking, "query": "capital of France", "documents": documents, "top_n": len(documents)}
    results = json.loads(post(setting, "/v1/rerank", body, Authorization="Bearer unused"))["results"]
    scores = [each["relevance_score"] for each in sorted(results, key=lambda each: each["index"])]
    assert scores[1] > scores[0]


if __name__ == "__main__":
    main()

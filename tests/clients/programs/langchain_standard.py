"""I/O: LangChain's own standard integration tests for its OpenAI and Ollama integrations.

Called as a program with the class to run, the setting and the names of the tests to leave out, each with its reason, it
prints one line of JSON for each of the standard tests; see scenarios.py. A test that is left out has the outcome
`left out`. What fails because the model is small is listed in small_model.py.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from scenarios import Setting

SETTING = Setting(**json.loads(os.environ.get("CLIENT_SETTING") or sys.argv[2]))
TOKENS = 8
"""Of an answer: any text will do."""
CALL_TOKENS = 48
"""Of an answer that must come to the end of a call or of a document."""
WITH_CALLS = ("tool", "structured", "json_mode", "agent_loop")
"""In the names of the tests that need `CALL_TOKENS`."""


def tokens_of(request: pytest.FixtureRequest) -> int:
    """Return how many tokens the model of a test may say."""
    return CALL_TOKENS if any(word in request.node.name for word in WITH_CALLS) else TOKENS


class TestChatOpenAI(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        asked = {"base_url": f"{SETTING.url}/v1", "api_key": "unused", "model": SETTING.model}
        # With a server of one's own it asks for the usage of streams only where it is told to.
        return {**asked, "temperature": 0, "max_tokens": TOKENS, "timeout": 120, "max_retries": 0, "stream_usage": True}

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> ChatOpenAI:
        more = getattr(request, "param", None) or {}
        return ChatOpenAI(**{**self.chat_model_params, "max_tokens": tokens_of(request), **more})

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return SETTING.answers_as


class TestChatOllama(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOllama]:
        return ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"base_url": SETTING.url, "model": SETTING.model, "temperature": 0, "num_predict": TOKENS}

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> ChatOllama:
        more = getattr(request, "param", None) or {}
        return ChatOllama(**{**self.chat_model_params, "num_predict": tokens_of(request), **more})

    @property
    def has_tool_choice(self) -> bool:
        return False  # Ollama's API has none

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return SETTING.answers_as


class TestOpenAIEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Otherwise the client cuts texts with OpenAI's vocabulary, which it would fetch, and sends numbers of that.
        plain = {"check_embedding_ctx_length": False}
        return {"base_url": f"{SETTING.url}/v1", "api_key": "unused", "model": SETTING.embedding, **plain}


class TestOllamaEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OllamaEmbeddings]:
        return OllamaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": SETTING.url, "model": SETTING.embedding}


class Reporter:
    """Prints the outcome of each test as a line; skipped ones say why, as do those that are left out."""

    def __init__(self, left_out: dict[str, str]) -> None:
        """`left_out` has the reasons by names, of one case of a test or of a test with all its cases."""
        self._left_out = left_out

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        found = {name for item in items for name in names_of(item.name)}
        if unknown := self._left_out.keys() - found:
            raise pytest.UsageError(f"no such tests to leave out: {', '.join(sorted(unknown))}")
        for item in items:
            if (reason := self._reason_of(item.name)) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))

    def _reason_of(self, case: str) -> str | None:
        return next((self._left_out[name] for name in names_of(case) if name in self._left_out), None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if (left_out := self._reason_of(name)) is not None:
            if report.skipped:
                self._tell(name, "left out", left_out)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._tell(name, "absent", reason)
        elif report.failed:
            self._tell(name, "failed", report.longreprtext[-3000:])
        elif report.when == "call":
            self._tell(name, "works", "")

    def _tell(self, feature: str, outcome: str, detail: str) -> None:
        print("\n" + json.dumps({"feature": feature, "outcome": outcome, "detail": detail}), flush=True)


def names_of(case: str) -> tuple[str, str]:
    """Return the name of a test's case, and of the test."""
    return case, case.partition("[")[0]


def main() -> None:
    os.environ["CLIENT_SETTING"] = sys.argv[2]
    argv = [f"{__file__}::{sys.argv[1]}", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "-o", "asyncio_mode=auto"]
    # The asynchronous client is shared by all models of one address, and belongs to one loop.
    argv += ["-o", "asyncio_default_test_loop_scope=session", "-o", "asyncio_default_fixture_loop_scope=session"]
    # The project's own conftest files are not for this environment.
    argv += ["--noconftest", "--import-mode=importlib", "--disable-socket", "--allow-hosts=127.0.0.1"]
    sys.exit(pytest.main(argv, plugins=[Reporter(json.loads(sys.argv[3]))]))


if __name__ == "__main__":
    main()

"""Pure: requests of Ollama's clients in OpenAI's words.

Read in ollama `docs/api.md`, `api/types.go` and `server/routes.go`, and in ollama-python's `_types.py`. A chat without
messages and a prompt that is empty ask for the model to be brought into memory, or, with `keep_alive` 0, to be dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from runtime.gateway.bodies import Body, invalid
from runtime.gateway.errors import ApiError
from runtime.gateway.protocols.ollama.fields import effort, keep_alive_s, listed, text, truth, whole
from runtime.gateway.protocols.ollama.messages import content_of, openai_messages
from runtime.gateway.protocols.ollama.options import logprobs, openai_options, response_format
from runtime.gateway.protocols.translation import openai_body

CHAT_PATH = "/v1/chat/completions"
TEXT_PATH = "/v1/completions"

Residence = Literal["load", "unload"]


@dataclass(frozen=True, slots=True)
class Generation:
    """A request for an answer."""

    path: str
    """At the endpoint."""
    body: Body


def chat(document: Mapping[str, Any], served: str, *, thinks: bool | None = None) -> Generation | Residence:
    """Return what `POST /api/chat` asks for; raises `ApiError` with status 400.

    `served` is the model's name here. `thinks` tells whether it can think; None where nobody knows.
    """
    messages, tools = listed(document, "messages"), listed(document, "tools")
    asked = _asked(document, thinks)
    if not messages:
        return asked.residence
    made: dict[str, Any] = {"model": served, "messages": openai_messages(messages), **asked.of_chat()}
    if tools:
        made["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    return Generation(CHAT_PATH, openai_body(made, is_stream=asked.is_stream))


def generate(document: Mapping[str, Any], served: str, *, thinks: bool | None = None) -> Generation | Residence:
    """Return what `POST /api/generate` asks for, like `chat`.

    A prompt is a chat of one message, as it is for Ollama; one that is `raw`, or that has a `suffix`, is a text to be
    gone on with.
    """
    prompt, system, suffix = text(document, "prompt"), text(document, "system"), text(document, "suffix")
    is_raw, images = truth(document, "raw", default=False), listed(document, "images")
    asked = _asked(document, thinks)
    if text(document, "template"):
        raise _unsupported("template", "the template of the model itself is used")
    if listed(document, "context"):
        raise _unsupported("context", "no answer from here brings one; send a conversation to /api/chat")
    if not prompt and not images:
        return asked.residence
    if is_raw and system:
        raise invalid("system", "cannot be said with 'raw', which sends the prompt as it is")
    if is_raw or suffix:
        if images:
            raise _unsupported("images", "a text that is gone on with has none; leave out 'raw' and 'suffix'")
        made: dict[str, Any] = {"model": served, "prompt": prompt, **asked.of_text()}
        if suffix:
            made["suffix"] = suffix
        return Generation(TEXT_PATH, openai_body(made, is_stream=asked.is_stream))
    messages = [{"role": "user", "content": content_of(prompt, images, "images")}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    made = {"model": served, "messages": messages, **asked.of_chat()}
    return Generation(CHAT_PATH, openai_body(made, is_stream=asked.is_stream))


def loading(served: str) -> Generation:
    """Return the smallest request for an answer: it brings the model into memory."""
    made = {"model": served, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
    return Generation(CHAT_PATH, openai_body(made, is_stream=False))


def loading_vectors(served: str) -> Body:
    """Return the smallest request for a vector: it brings the model into memory."""
    return openai_body({"model": served, "input": ["."], "encoding_format": "float"}, is_stream=False)


def embed(document: Mapping[str, Any], served: str) -> Body | None:
    """Return what `POST /api/embed` asks for; None where there is nothing to embed, only a model to load.

    An empty text is nothing, but one in a list has its vector (`EmbedHandler` in ollama `server/routes.go`), as far as
    the endpoint makes one. Raises `ApiError` with status 400.
    """
    given = document.get("input")
    if not (given is None or isinstance(given, str | list)):
        raise invalid("input", "must be a text or a list of texts")
    if not given:
        _check_embedding(document)
        return None
    texts = [given] if isinstance(given, str) else given
    for index, each in enumerate(texts):
        if not isinstance(each, str):
            raise invalid(f"input[{index}]", "must be a text")
    return _embedding(document, served, texts)


def embeddings(document: Mapping[str, Any], served: str) -> Body | None:
    """Return what the older `POST /api/embeddings` asks for, like `embed`; it knows one text only."""
    prompt = text(document, "prompt")
    if not prompt:
        _check_embedding(document)
        return None
    return _embedding({**document, "dimensions": None, "truncate": None}, served, [prompt])


def _embedding(document: Mapping[str, Any], served: str, texts: list[str]) -> Body:
    dimensions = _check_embedding(document)
    # Texts that are too long are cut unless that is forbidden: Ollama's default, and the opposite of OpenAI's.
    is_cut = truth(document, "truncate", default=True)
    made: dict[str, Any] = {"model": served, "input": texts, "encoding_format": "float"}
    if is_cut:
        made["truncate"] = True
    if dimensions is not None:
        made["dimensions"] = dimensions
    return openai_body(made, is_stream=False)


def _check_embedding(document: Mapping[str, Any]) -> int | None:
    keep_alive_s(document)
    openai_options(document)
    dimensions = whole(document, "dimensions")
    if dimensions is not None and dimensions < 0:
        raise invalid("dimensions", "must be a whole number of at least 1")
    return dimensions or None


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a chat and a prompt have in common."""

    options: Mapping[str, Any]
    effort: str | None
    logprobs: int | None
    """How many alternatives are told to each token; None where no log probabilities are wanted."""
    is_stream: bool
    residence: Residence
    """What is wanted where there is nothing to answer."""

    def of_chat(self) -> dict[str, Any]:
        made = {**self.options, **({"reasoning_effort": self.effort} if self.effort else {})}
        if self.logprobs is not None:
            made["logprobs"] = True
        return {**made, "top_logprobs": self.logprobs} if self.logprobs else made

    def of_text(self) -> dict[str, Any]:
        return {**self.options, **({} if self.logprobs is None else {"logprobs": self.logprobs})}


def _asked(document: Mapping[str, Any], thinks: bool | None) -> _Asked:
    """Read what a chat and a prompt have in common; raises `ApiError` with status 400.

    `truncate` and `shift` say whether a conversation that is too long may lose its beginning. It is never cut here: an
    endpoint that cannot read it says so.
    """
    for key in ("truncate", "shift"):
        truth(document, key, default=True)
    if truth(document, "_debug_render_only", default=False):
        raise _unsupported("_debug_render_only", "endpoints do not show their prompts")
    reasoning = effort(document)
    if thinks is False:
        if reasoning not in (None, "none"):
            raise _unsupported("think", f"'{document.get('model')}' does not support thinking")
        reasoning = None
    is_stream = truth(document, "stream", default=True)
    residence: Residence = "unload" if keep_alive_s(document) == 0 else "load"
    options = {**openai_options(document), **response_format(document)}
    return _Asked(options, reasoning, logprobs(document), is_stream, residence)


def _tool(tool: object, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise invalid(where, "must be an object")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise invalid(f"{where}.function", "must be an object with a name")
    return {"type": "function", "function": function}


def _unsupported(param: str, reason: str) -> ApiError:
    return ApiError(400, f"'{param}' is not supported: {reason}.", code="unsupported_parameter", param=param)

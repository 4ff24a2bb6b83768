"""Pure: llama.cpp's `llama-server`. Options: its own README at https://github.com/ggml-org/llama.cpp, tools/server."""

from __future__ import annotations

import re

from orchestrator.engines.description import Ask, Engine, Launch, Scalar, options

RESERVED = frozenset(
    {
        "model", "alias", "host", "port", "api-key", "api-key-file", "api-prefix", "reuse-port",
        "ssl-key-file", "ssl-cert-file",
        # other models than the stack's, which it would fetch or let clients choose
        "model-url", "hf-repo", "hf-file", "hf-token", "hf", "hfr", "hff", "mu", "docker-repo",
        "hf-repo-draft", "hfd", "hfrd",
        "models-dir", "models-preset", "models-autoload", "models-max",
    }
)  # fmt: skip

PRESETS = re.compile(r"(?!spec-default$).*-default|fim-.*")
"""Such as `gpt-oss-20b-default` and `fim-qwen-7b-spec`: each loads a model of its own from a hub, other than the
stack's. `spec-default` only chooses how tokens are guessed ahead."""


def build(ask: Ask) -> Launch:
    """Return the command. Its key comes from the environment, which `--api-key` falls back to.

    `--ctx-size` is for all slots together: each of them gets the stack's `context` for itself. Without a `context` it
    is the model's own, shared by whoever needs it (`--kv-unified`).
    """
    spec = ask.spec
    defaults: dict[str, Scalar] = {"parallel": spec.max_batch}
    if spec.model.context is not None:
        defaults["ctx-size"] = spec.model.context * spec.max_batch
    else:
        defaults |= {"ctx-size": 0, "kv-unified": True}
    defaults |= {"jinja": True, "no-webui": True} if spec.model.kind == "chat" else {"no-webui": True}
    if spec.model.kind != "chat":
        defaults["embeddings" if spec.model.kind == "embedding" else "reranking"] = True
    argv = [ask.program, "--model", ask.model_path, "--alias", spec.model.name]
    argv += ["--host", ask.host, "--port", str(ask.port), *options(spec, LLAMA_SERVER, defaults, "separate")]
    return Launch(tuple(argv), {"LLAMA_API_KEY": ask.token})


LLAMA_SERVER = Engine(
    program="llama-server",
    install="install llama.cpp there (`brew install llama.cpp`, or a release of github.com/ggml-org/llama.cpp)",
    form="original",
    reserved=RESERVED,
    refused=PRESETS,
    build=build,
)

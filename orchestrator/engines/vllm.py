"""Pure: vLLM's OpenAI server, `vllm serve`. See https://docs.vllm.ai, serve arguments and environment variables."""

from __future__ import annotations

from orchestrator.engines.description import Ask, Engine, Launch, Scalar, options

RESERVED = frozenset(
    {
        "model", "model-tag", "served-model-name", "host", "port", "uds", "api-key", "root-path", "config",
        "ssl-keyfile", "ssl-certfile", "revision",
    }
)  # fmt: skip


def build(ask: Ask) -> Launch:
    """Return the command. The model is a directory here, so no hub is asked, and nobody is told of the use."""
    spec = ask.spec
    defaults: dict[str, Scalar] = {"max-num-seqs": spec.max_batch}
    if spec.model.context is not None:
        defaults["max-model-len"] = spec.model.context
    argv = [ask.program, "serve", ask.model_path, f"--served-model-name={spec.model.name}"]
    argv += [f"--host={ask.host}", f"--port={ask.port}", *options(spec, VLLM, defaults, "joined")]
    environment = {
        "VLLM_API_KEY": ask.token,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return Launch(tuple(argv), environment)


VLLM = Engine(
    program="vllm",
    install="install vLLM there in an environment of its own and name it in args.program, such as /opt/vllm/bin/vllm",
    form="original",
    reserved=RESERVED,
    build=build,
)

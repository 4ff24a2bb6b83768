"""Pure: the stock server of mlx-lm, `python -m mlx_lm server`, from the node's own runtime environment.

It asks for no key, and any client of it can name a repository of the hub: it is bound to loopback, where the gateway
beside it rewrites `model`, and it is kept off the hub.
"""

from __future__ import annotations

from orchestrator.engines.description import LOOPBACK, Ask, Engine, EngineError, Launch, Scalar, options

UPSTREAM_MODEL = "default_model"
"""The name by which it answers with the model that it was started with, whatever that is called."""
RESERVED = frozenset({"model", "host", "port", "allowed-origins", "pipeline", "trust-remote-code"})


def build(ask: Ask) -> Launch:
    """Return the command. Raises EngineError where others than this machine could reach it and nobody accepted that."""
    spec = ask.spec
    if ask.host not in LOOPBACK and spec.args.get("exposed") != "accepted":
        raise EngineError(
            f"services.{spec.service}: mlx-lm-server asks for no key and would listen on {ask.host}; run it on the "
            "gateway's node, use engine: mlx, or, in a network where everybody may use it, set "
            f"services.{spec.service}.args.exposed=accepted"
        )
    defaults: dict[str, Scalar] = {"decode-concurrency": spec.max_batch}
    argv = [ask.program, "-m", "mlx_lm", "server", f"--model={ask.model_path}", f"--host={ask.host}"]
    argv += [f"--port={ask.port}", *options(spec, MLX_LM_SERVER, defaults, "joined")]
    return Launch(tuple(argv), {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"})


MLX_LM_SERVER = Engine(
    program="python3",
    install="let args.program name a Python that has mlx-lm, or leave it out for the one that apply provisions",
    form="mlx",
    reserved=RESERVED,
    build=build,
    has_key=False,
    own=frozenset({"program", "exposed"}),
)

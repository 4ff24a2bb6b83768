"""Pure: the stack, one complete desired state. The content of `conf/stacks/*.yaml`, composed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, StringConstraints, Tag

from schemas.base import (
    COLD,
    HOT,
    EndpointKey,
    Frozen,
    HelperKey,
    ModelKey,
    NodeKey,
    PolicyKey,
    PublicName,
    RoleKey,
    Secret,
    ServiceKey,
    StackKey,
)
from schemas.model import Model, ModelKind
from schemas.node import Address, Node
from schemas.parameters import ParameterName
from schemas.policy import Breaker, HealthCheck, Limits, Policy, Seconds, Timeouts

Port = Annotated[int, Field(ge=1, le=65_535)]


def _has_host_and_port(url: str) -> str:
    """Refuse a URL that looks right and cannot be taken apart."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"'{url}' is no URL: {error}; expected http://HOST:PORT") from error
    if not host or port == 0 or (":" in host) != parts.netloc.startswith("["):
        raise ValueError(
            f"'{url}' names no host and port that can be reached; expected http://HOST:PORT, port 1 to 65535"
        )
    return url


Url = Annotated[
    str,
    StringConstraints(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?$"),
    AfterValidator(_has_host_and_port),
]
Scalar = str | int | float | bool
Engine = Literal["mlx", "mlx-lm-server", "llama-server", "vllm", "ollama", "command"]
HelperApi = Literal["openai", "ollama", "tei", "infinity", "mlx-lm-server", "worker"]

UNION_TAGS = frozenset(
    {
        "service endpoint",
        "helper endpoint",
        "local fallback",
        "role fallback",
        "named fallback",
        "keys of a file",
        "no keys",
        "settings of a canary",
        "no canary",
    }
)
"""Tags that pydantic puts into the location of an error inside a union; they are no keys of the file."""


class Canary(Frozen):
    """The prompts that a group must answer as one process does before anybody is sent to it."""

    long_tokens: Annotated[int, Field(ge=64, le=131_072), HOT] = 4096
    """Tokens of its long prompt; as many as the model's context holds where that is less. A CPU reads some ten to a
    hundred of them a second, and one process reads them once more the first time."""


CanaryChoice = Annotated[
    Annotated[Literal["off"], Tag("no canary")] | Annotated[Canary, Tag("settings of a canary")],
    Discriminator(lambda value: "settings of a canary" if isinstance(value, Canary | Mapping) else "no canary"),
    BeforeValidator(lambda value: "off" if value is False else value),  # what YAML makes of a bare `off`
]


class Sharding(Frozen):
    """How one model is spread over the nodes of a service."""

    backend: Annotated[Literal["ring", "jaccl", "nccl"], COLD]
    """What carries the collectives: `ring` everywhere, `jaccl` between Macs with RDMA, `nccl` on CUDA."""
    strategy: Annotated[Literal["tensor", "pipeline"], COLD]
    """`tensor` splits every layer, `pipeline` gives every rank some of the layers."""
    split: Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, COLD] = None
    """Share of the layers per rank, for `pipeline`."""
    canary: Annotated[CanaryChoice, HOT] = Canary()
    """What a group is asked before requests are sent to it; `off` sends them after its first token."""


class Service(Frozen):
    """A model that we run."""

    model: Annotated[ModelKey, COLD]
    """The name of a model of this stack."""
    engine: Annotated[Engine, COLD] = "mlx"
    """The program that serves it; `mlx` is orchestrate's own worker."""
    nodes: Annotated[tuple[NodeKey, ...], Field(min_length=1), COLD]
    """Where it runs: one node; several as one sharded group, which may name a node twice; or several that its copies
    take in turn."""
    sharding: Annotated[Sharding | None, COLD] = None
    """How one copy is spread over all its nodes, one rank on each."""
    replicas: Annotated[int, Field(ge=1, le=64), COLD] = 1
    """How many copies run: of a sharded service groups on the same nodes, else copy i on node i, and around again."""
    update: Annotated[Literal["auto", "surge", "swap"], HOT] = "auto"
    """`surge` starts the new unit beside the old one unless memory is known not to allow it, `swap` stops first, `auto`
    surges where memory is known to allow it."""
    start: Annotated[Literal["always", "on-demand"], COLD] = "always"
    """`on-demand`, of engine `mlx`: its process runs all the time, its model is brought into memory by requests."""
    idle_stop_s: Annotated[Seconds | None, COLD] = None
    """Seconds without a request after which an on-demand service drops its model; without it another one that needs the
    memory makes it do so."""
    port: Annotated[Port | None, COLD] = None
    """The port of its HTTP server; one of the node's `ports` when absent."""
    max_batch: Annotated[int, Field(ge=1, le=256), COLD] = 8
    """Requests that are answered at once; of embedding and reranking models texts, 128 where nothing is said."""
    max_waiting: Annotated[int, Field(ge=0, le=4096), COLD] = 64
    """Requests that may wait for a place in the batch; more are refused with 503."""
    prompt_cache_gib: Annotated[float | None, Field(ge=0, le=4096), COLD] = None
    """Memory for the keys and values of prompts to come, those of running requests counted, in GiB; of a group on each
    rank. 0 keeps none. Without it the worker keeps at most 1 GiB, of small models less, out of what a plan counts."""
    draft: Annotated[ModelKey | None, COLD] = None
    """A smaller chat model of this stack, of the same vocabulary, that proposes tokens while one request runs alone."""
    draft_tokens: Annotated[int, Field(ge=1, le=16), COLD] = 3
    """Tokens that the `draft` proposes for one step."""
    ready_timeout_s: Annotated[Seconds, HOT] = 600.0
    """How long loading may take until the first real token, in seconds."""
    drain_s: Annotated[Seconds, HOT] = 30.0
    """How long requests in flight may take to finish when it is stopped, in seconds."""
    args: Annotated[Mapping[str, Scalar], COLD] = Field(default_factory=dict)
    """Arguments for engines other than `mlx`, by option name."""


class HelperModel(Frozen):
    """A model that a helper offers."""

    ensure: Annotated[Literal["present"] | None, HOT] = None
    """`present`: a helper that can pull models is asked to have it."""
    kind: Annotated[ModelKind | None, HOT] = None
    """What it does, where the role that names it does not show it by `dimensions`, `skip` or its other models."""


class Helper(Frozen):
    """An inference server that somebody else runs."""

    node: Annotated[NodeKey | None, HOT] = None
    """The machine it runs on, where that machine is one of the stack's."""
    url: Annotated[Url, HOT]
    """Its base URL, without `/v1`."""
    api: Annotated[HelperApi, HOT] = "openai"
    """The protocol it speaks: `openai` is that of vLLM, llama.cpp, LM Studio, LocalAI and most others."""
    models: Annotated[Mapping[PublicName, HelperModel], Field(min_length=1), HOT]
    """The models that it offers, by its own names."""
    max_batch: Annotated[int | None, Field(ge=1, le=65_536), HOT] = None
    """Texts or documents that it takes in one request; more are sent in several. Without it TEI gets 32, Infinity 2048
    and others any number."""
    drop_params: Annotated[tuple[ParameterName, ...], HOT] = ()
    """Parameters of requests that are left out for it. Without it what a server would pass over in silence is done by
    the gateway, or refused by name."""
    key: Annotated[Secret | None, HOT] = None
    """The key that it asks for; sent to no one else."""


class ServiceEndpoint(Frozen):
    """A place of a role that one of our services fills."""

    service: Annotated[ServiceKey, HOT]
    priority: Annotated[int, Field(ge=1, le=100), HOT] = 1
    """Lower is tried first."""
    weight: Annotated[int, Field(ge=1, le=100), HOT] = 1
    """Share of the requests among endpoints of one priority."""
    timeout_s: Annotated[Seconds | None, HOT] = None
    """Seconds to the first content of an answer; the role's when absent."""
    drop_params: Annotated[tuple[ParameterName, ...], HOT] = ()
    """Parameters of requests that are left out for it."""


class HelperEndpoint(Frozen):
    """A place of a role that a helper's model fills."""

    helper: Annotated[HelperKey, HOT]
    model: Annotated[PublicName, HOT]
    """One of the helper's models."""
    priority: Annotated[int, Field(ge=1, le=100), HOT] = 1
    """Lower is tried first."""
    weight: Annotated[int, Field(ge=1, le=100), HOT] = 1
    """Share of the requests among endpoints of one priority."""
    timeout_s: Annotated[Seconds | None, HOT] = None
    """Seconds to the first content of an answer; the role's when absent."""
    drop_params: Annotated[tuple[ParameterName, ...], HOT] = ()
    """Parameters of requests that are left out for it, with those of its helper."""


def _endpoint_tag(value: Any) -> str:
    if isinstance(value, HelperEndpoint) or (isinstance(value, Mapping) and "helper" in value):
        return "helper endpoint"
    return "service endpoint"


Endpoint = Annotated[
    Annotated[ServiceEndpoint, Tag("service endpoint")] | Annotated[HelperEndpoint, Tag("helper endpoint")],
    Discriminator(_endpoint_tag),
]


class LocalFallback(Frozen):
    """Fall back to a service of ours."""

    local: Annotated[ServiceKey, HOT]


class RoleFallback(Frozen):
    """Fall back to another role."""

    role: Annotated[RoleKey, HOT]


def _fallback_tag(value: Any) -> str:
    if isinstance(value, LocalFallback) or (isinstance(value, Mapping) and "role" not in value):
        return "local fallback"
    if isinstance(value, RoleFallback | Mapping):
        return "role fallback"
    return "named fallback"


Fallback = Annotated[
    Annotated[Literal["error", "skip"], Tag("named fallback")]
    | Annotated[LocalFallback, Tag("local fallback")]
    | Annotated[RoleFallback, Tag("role fallback")],
    Discriminator(_fallback_tag),
]


class Role(Frozen):
    """A task that clients ask for by name, with the endpoints that can do it."""

    endpoints: Annotated[Mapping[EndpointKey, Endpoint], Field(min_length=1), HOT]
    """Who can answer, by a name of your choice."""
    fallback: Annotated[Fallback, HOT] = "error"
    """When no endpoint can answer: `error`, `skip` (reranking), `{local: service}` or `{role: other}`."""
    context_fallback: Annotated[RoleKey | None, HOT] = None
    """The role that is asked where a prompt is longer than what an endpoint here can read."""
    policy: Annotated[PolicyKey | None, HOT] = None
    """A policy of this stack; the role's own settings win over it."""
    breaker: Annotated[Breaker | None, HOT] = None
    health_check: Annotated[HealthCheck | None, HOT] = None
    timeouts: Annotated[Timeouts | None, HOT] = None
    limits: Annotated[Limits | None, HOT] = None
    timeout_s: Annotated[Seconds | None, HOT] = None
    """Seconds to the first content of an answer, for all its endpoints."""
    midstream: Annotated[Literal["error", "restart", "continue"], HOT] = "error"
    """When an endpoint breaks off in the middle of a stream: `error` ends it with an error, with `restart` another
    endpoint gives the whole answer anew behind an event that says so, with `continue` it goes on where the first one
    ended, unseen."""
    dimensions: Annotated[int | None, Field(ge=1), HOT] = None
    """The length of its vectors: models whose files say another are refused, and so are answers of another length."""


KEYS_FILE_PATTERN = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*\.yaml$"
ORIGIN_PATTERN = r"^[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+$"


def _stays_below(path: str) -> str:
    """Refuse a path that leads out of the configuration directory."""
    if ".." in path.split("/"):
        raise ValueError(f"'{path}' leads out of the configuration directory")
    return path


class KeysFile(Frozen):
    """Where the API keys are."""

    keys_file: Annotated[str, StringConstraints(pattern=KEYS_FILE_PATTERN), AfterValidator(_stays_below), HOT]
    """Path of the keys file below the configuration directory; `orchestrate keys` writes it."""


Auth = Annotated[
    Annotated[Literal["none"], Tag("no keys")] | Annotated[KeysFile, Tag("keys of a file")],
    Discriminator(lambda value: "keys of a file" if isinstance(value, KeysFile | Mapping) else "no keys"),
]


class Gateway(Frozen):
    """The process that serves clients."""

    node: Annotated[NodeKey, COLD]
    """Where it runs."""
    bind: Annotated[Address, COLD] = "127.0.0.1"
    """The address that it listens on."""
    port: Annotated[Port, COLD] = 8000
    """The port that it listens on."""
    auth: Annotated[Auth | None, HOT] = None
    """Who may ask. Without keys only a loopback address can be bound."""
    exposed: Annotated[Literal["accepted"] | None, HOT] = None
    """`accepted`, together with `auth: none`: anyone who reaches the address may use it."""
    hosts: Annotated[tuple[Address, ...], HOT] = ()
    """More names by which clients call it; addresses, and what its machine and its node are called, need not be here;
    other names are refused with 421."""
    origins: Annotated[tuple[Annotated[str, StringConstraints(pattern=ORIGIN_PATTERN)], ...], HOT] = ()
    """Web pages and apps that may ask it from a browser, such as https://chat.lan or app://obsidian.md; no other page
    may."""
    body_limit_mib: Annotated[float, Field(gt=0, le=1024), HOT] = 20.0
    """The largest request body, in MiB."""


class History(Frozen):
    """What is remembered of requests."""

    bodies: Annotated[bool, HOT] = False
    """Whether prompts and answers are stored."""


class Stack(Frozen):
    """One complete desired state of the cluster."""

    stack: StackKey
    """Its name; the same as the file's."""
    nodes: Mapping[NodeKey, Node] = Field(min_length=1)
    """The machines, usually composed from `conf/nodes`."""
    models: Mapping[ModelKey, Model] = Field(default_factory=dict)
    """What can be served, usually composed from `conf/models`."""
    policies: Mapping[PolicyKey, Policy] = Field(default_factory=dict)
    """Named settings that roles refer to, usually composed from `conf/policies`."""
    services: Mapping[ServiceKey, Service] = Field(default_factory=dict)
    """What we run."""
    helpers: Mapping[HelperKey, Helper] = Field(default_factory=dict)
    """What somebody else runs."""
    roles: Mapping[RoleKey, Role] = Field(min_length=1)
    """What clients ask for."""
    aliases: Annotated[Mapping[PublicName, tuple[str, ...]], HOT] = Field(default_factory=dict)
    """Other public names: each an ordered list of roles, services or models; the first healthy one answers."""
    gateway: Gateway
    """Where clients ask."""
    heal: Annotated[bool, HOT] = False
    """Whether a supervised watcher mends the cluster by itself."""
    history: Annotated[History, HOT] = History()
    """What is remembered of requests."""

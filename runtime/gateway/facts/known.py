"""Pure: what is known of an endpoint's model because its server said so. What nobody said stays unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from runtime.gateway.routing.table import EndpointIdentity

Capability = Literal[
    "completion", "tools", "vision", "audio", "thinking", "json_schema", "logprobs", "insert", "embedding", "rerank"
]
"""The words of Ollama's `/api/show` where it has one (ollama/ollama `types/model/capability.go`)."""
CAPABILITIES: tuple[Capability, ...] = get_args(Capability)

Source = Literal[
    "worker", "llama.cpp", "vllm", "ollama", "lm studio", "tei", "infinity", "mlx_lm.server", "gateway", "openai", ""
]
"""Which kind of server told; empty while none did."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What one endpoint's server says of the model there. None means that it did not say."""

    source: Source = ""
    observed_at: float | None = None
    """When it was last said, on the event loop's clock."""
    context_length: int | None = None
    """Tokens that prompt and answer may have together, as the server enforces it now; of an embedding or reranking
    model the tokens of one text."""
    trained_context_length: int | None = None
    """What the model itself was made for, which its server may have lowered."""
    max_output: int | None = None
    """Tokens that an answer may have, where that is bounded apart from the context."""
    can: frozenset[Capability] = frozenset()
    """What it is known to be able to do."""
    cannot: frozenset[Capability] = frozenset()
    """What it is known not to be able to do. What is in neither is unknown."""
    dimensions: int | None = None
    """The length of its vectors, or of its hidden states where it gives none."""
    architecture: str | None = None
    """As GGUF and Hugging Face name it: `llama`, `qwen3`, `bert`."""
    parameter_count: int | None = None
    parameter_size: str | None = None
    """The same for people: `8.0B`."""
    quantisation: str | None = None
    """In the server's own words: `Q4_K_M`, `4bit`, `F16`."""
    format: str | None = None
    """`gguf`, `safetensors`, `mlx`."""
    size_bytes: int | None = None
    """Of the weights."""
    digest: str | None = None
    """Of the model's manifest, in hexadecimal; only Ollama tells one."""
    modified_at: str | None = None
    """When the model was last changed there, as ISO 8601."""
    is_loaded: bool | None = None
    """Whether it is in memory."""
    expires_at: float | None = None
    """When it will be dropped from memory unless somebody asks, in seconds since the epoch; None where it is not known
    or where it stays."""
    size_loaded: int | None = None
    """Bytes of memory that it takes, caches included."""
    size_vram: int | None = None
    """Those of them in the memory of an accelerator."""

    def is_able(self, capability: Capability) -> bool | None:
        """Tell whether it can do something; None where nobody said."""
        return True if capability in self.can else False if capability in self.cannot else None

    @property
    def is_known(self) -> bool:
        """Tell whether its server said anything."""
        return self.observed_at is not None


UNKNOWN = Facts()


class Endpoint(Protocol):
    """What facts are looked up by: `routing.table.Target` is one."""

    @property
    def identity(self) -> EndpointIdentity: ...


class FactBook:
    """Facts by endpoint identity; they survive reloads that leave the identity as it is. Used on one event loop."""

    def __init__(self) -> None:
        self._known: dict[EndpointIdentity, Facts] = {}
        self.on_note: Callable[[EndpointIdentity, Facts, float], None] = lambda *_: None
        """Called with what was just heard of an endpoint, and when it was asked."""

    def of(self, target: Endpoint) -> Facts:
        """Return what is known of an endpoint: `UNKNOWN` until its server said something."""
        return self._known.get(target.identity, UNKNOWN)

    def note(self, identity: EndpointIdentity, facts: Facts, asked_at: float = math.inf) -> None:
        """Take over what was just heard of an endpoint; `asked_at` is on the event loop's clock, infinity for now."""
        self._known[identity] = facts
        self.on_note(identity, facts, asked_at)

    def keep_only(self, identities: Collection[EndpointIdentity]) -> None:
        """Forget the endpoints that no table names any more."""
        self._known = {identity: facts for identity, facts in self._known.items() if identity in identities}

    @property
    def known(self) -> Mapping[EndpointIdentity, Facts]:
        """Everything that is known, to be read only."""
        return self._known

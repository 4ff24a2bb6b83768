"""Pure: the bodies of Ollama's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from runtime.gateway.openapi.shapes import Described, ModelName, Text, Token
from runtime.gateway.protocols.ollama.fields import LARGEST_WHOLE, LONGEST_DURATION

_BASE64 = r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_STARTS = r"(?:iVBORw0KGgo[A-Za-z0-9+/]|/9j/|R0lGOD[A-Za-z0-9+/]{2}|UklGR[A-Za-z0-9+/]{3})"
Picture = Annotated[str, Field(pattern=rf"^(?:data:image/[a-z0-9.+-]+;base64,)?{_STARTS}{_BASE64}$")]
"""PNG, JPEG, GIF or WebP in base64. Addresses are refused: nothing is fetched for a client."""
Duration = Annotated[
    str,
    Field(
        pattern=r"^[+-]?(?:0|(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)$",
        max_length=LONGEST_DURATION,
        examples=["5m"],
    ),
]
Whole = Annotated[int, Field(ge=-LARGEST_WHOLE, le=LARGEST_WHOLE)]
Empty = Annotated[Any, WithJsonSchema({"type": ["array", "null"], "maxItems": 0})]
"""What may be there if it says nothing."""
Think = bool | Literal["low", "medium", "high", "max"]


def _only(value: float) -> Any:
    return Annotated[Any, WithJsonSchema({"enum": [value, None]})]


class Options(Described):
    """How the answer is generated. What says how an engine is loaded is passed over: the stack files do."""

    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_p: float | None = None
    top_k: Whole | None = None
    repeat_penalty: float | None = None
    seed: Whole | None = None
    num_predict: Whole | None = None
    stop: str | list[str] | None = None
    typical_p: _only(1) = None  # type: ignore[valid-type]
    tfs_z: _only(1) = None  # type: ignore[valid-type]
    mirostat: _only(0) = None  # type: ignore[valid-type]


class OllamaCalledFunction(Described):
    """A function and what it is called with."""

    name: Text
    arguments: dict[str, Any] | None = None


class OllamaCall(Described):
    """A call of a function by the model."""

    id: str | None = None
    function: OllamaCalledFunction


class OllamaMessage(Described):
    """One message of a conversation."""

    role: Text
    """`system`, `user`, `assistant` or `tool`."""
    content: str | None = None
    images: list[Picture] | None = None
    thinking: str | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaFunction(Described):
    """A function that the model may call."""

    name: Text


class OllamaTool(Described):
    """A tool that the model may call."""

    function: OllamaFunction


class Residing(Described):
    """What a request says of its model. Null is as if a parameter was not there."""

    model: ModelName
    """A role, an alias, a service, an endpoint or a model; `:latest` may be left out or added."""
    keep_alive: float | Duration | None = None
    """Seconds, or a duration. How long models stay in memory say the stack files."""
    options: Options | None = None


class Speaking(Residing):
    """What chats and prompts may say."""

    stream: bool | None = None
    """Whether the answer comes in lines; it does unless this is false."""
    format: Literal["", "json"] | dict[str, Any] | None = None
    """`json`, or a JSON Schema."""
    think: Think | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncate: bool | None = None
    shift: bool | None = None
    debug_render_only: Annotated[Literal[False] | None, Field(alias="_debug_render_only")] = None


class OllamaChatRequest(Speaking):
    """A request for the next message of a conversation; without messages the model is only loaded."""

    messages: list[OllamaMessage] | None = None
    tools: list[OllamaTool] | None = None


class OllamaGenerateRequest(Speaking):
    """A request for an answer to a prompt; without one the model is only loaded."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    raw: bool | None = None
    images: list[Picture] | None = None
    template: Literal[""] | None = None
    context: Empty = None


class OllamaEmbedRequest(Residing):
    """A request for the vectors of texts."""

    input: str | list[str] | None = None
    """A text or several; without any the model is only loaded."""
    dimensions: Annotated[int, Field(ge=0, le=LARGEST_WHOLE)] | None = None
    truncate: bool | None = None


class OllamaEmbeddingsRequest(Residing):
    """A request for the vector of one text."""

    prompt: str | None = None


class OllamaShowRequest(Described):
    """Which model is meant."""

    model: ModelName


class Line(Described):
    """What all answers and their lines say."""

    model: str
    created_at: str
    done: bool
    done_reason: str | None = None
    total_duration: Token | None = None
    """Nanoseconds, like all durations here."""
    prompt_eval_count: Token | None = None
    eval_count: Token | None = None


class OllamaSaidMessage(Described):
    """What the model says."""

    role: str
    content: str
    thinking: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatLine(Line):
    """An answer to a conversation, whole or one line of it."""

    message: OllamaSaidMessage


class GenerateLine(Line):
    """An answer to a prompt, whole or one line of it."""

    response: str


class EmbedAnswer(Described):
    """The vectors of texts, in their order."""

    model: str
    embeddings: list[list[float]]


class EmbeddingsAnswer(Described):
    """The vector of a text."""

    embedding: list[float]


class Details(Described):
    """What is known of a model; empty where its server does not say."""

    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(Described):
    """A name that may be sent as `model`."""

    name: str
    model: str
    modified_at: str
    size: Token
    digest: str
    details: Details


class Tags(Described):
    """The names that may be sent as `model`."""

    models: list[Tag]


class Process(Described):
    """A model in memory."""

    name: str
    model: str
    size: Token
    digest: str
    details: Details
    expires_at: str
    size_vram: Token


class Processes(Described):
    """The models in memory."""

    models: list[Process]


class Shown(Described):
    """What is known of a model."""

    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Version(Described):
    """The version of Ollama whose API this is."""

    version: str

"""Pure: the bodies of the OpenAI API: chat and text completions, embeddings, and the models list."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from runtime.gateway.bodies import CHECKED
from runtime.gateway.openapi.shapes import Asked, Count, Described, ModelName, Text, Token, only_as

_DATA = "^[dD][aA][tT][aA]:"
DataUrl = Annotated[str, Field(pattern=_DATA)]
"""A file itself: nothing is fetched from other addresses."""


_ANY_URL: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": _DATA},
        {
            "type": "object",
            "properties": {"url": {"type": "string", "pattern": _DATA}},
            "required": ["url"],
            **only_as({"url"}),
        },
        {"type": "null"},
    ]
}
_URLS: dict[str, Any] = {"patternProperties": {"_[uU][rR][lL]$": _ANY_URL}}
"""Files under other names: engines look for them whatever the type of a part is."""


class TextPart(Described):
    """A text."""

    model_config = ConfigDict(json_schema_extra=_URLS)

    type: Literal["text"]
    text: str


class Url(Described):
    """A file, as engines want it written."""

    model_config = ConfigDict(json_schema_extra=only_as({"url"}))

    url: DataUrl


class ImagePart(Described):
    """A picture, for models that see."""

    model_config = ConfigDict(json_schema_extra=_URLS)

    type: Literal["image_url"]
    image_url: Url | DataUrl


class OtherPart(Described):
    """Anything else that an engine knows."""

    model_config = ConfigDict(
        json_schema_extra={"properties": {"type": {"not": {"enum": ["text", "image_url"]}}}, **_URLS}
    )


class CalledFunction(Described):
    """A function, and its arguments as JSON."""

    name: str


class ToolCall(Described):
    """A call of a function by the model."""

    function: CalledFunction


class Message(Described):
    """One message of a conversation."""

    model_config = ConfigDict(json_schema_extra=only_as(CHECKED))

    role: Text
    """`system`, `developer`, `user`, `assistant` or `tool`."""
    content: str | list[TextPart | ImagePart | OtherPart | str] | None = None
    tool_calls: list[ToolCall] | None = None


class Function(Described):
    """A function, by its name."""

    name: Text


class FunctionTool(Described):
    """A function that the model may call."""

    type: Literal["function"] = "function"
    function: Function


_NO_FUNCTION: dict[str, Any] = {"properties": {"type": {"not": {"const": "function"}}}}


class OtherTool(Described):
    """Any other tool that an engine knows."""

    model_config = ConfigDict(json_schema_extra=_NO_FUNCTION | {"required": ["type"]})


class OneFunction(Described):
    """The function that the model must call; it is one of the tools."""

    type: Literal["function"]
    function: Function


class OtherChoice(Described):
    """Any other choice that an engine knows."""

    model_config = ConfigDict(json_schema_extra=_NO_FUNCTION)


class Generation(Asked):
    """What every request for generated text may say. Null is as if a parameter was not there."""

    model: ModelName
    """A role, an alias, a service, an endpoint or a model."""
    stream: bool | None = None
    """Whether the answer comes as server-sent events."""
    stream_options: dict[str, Any] | None = None
    """`{"include_usage": true}` asks for a last event with what was used."""
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | int | None = None
    """True or false for chat, how many for text completions."""
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[FunctionTool | OtherTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | OneFunction | OtherChoice | None = None
    user: str | None = None


class ChatRequest(Generation):
    """A request for the next message of a conversation."""

    messages: Annotated[list[Message], Field(min_length=1)]


class CompletionRequest(Generation):
    """A request to go on with a text."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    """A text, several, or tokens."""


class EmbeddingsRequest(Asked):
    """A request for the vectors of texts."""

    model: ModelName
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    """A text, several, or tokens."""
    messages: None = None
    """Conversations are not embedded."""
    encoding_format: Literal["float", "base64"] | None = None
    """`base64` carries float32, little end first."""
    dimensions: Count | None = None
    """Has to be the length that the model's vectors have."""
    user: str | None = None
    stream: Literal[False] | None = None


class Usage(Described):
    """How many tokens a request took."""

    prompt_tokens: Token
    completion_tokens: Token = 0
    total_tokens: Token
    estimated: Literal[True] | None = None
    """The endpoint did not say; this is the gateway's estimate."""


class ChatMessage(Described):
    """What a model has said."""

    role: str
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Described):
    """One of the answers that were asked for."""

    index: int
    message: ChatMessage
    finish_reason: str | None


class ChatCompletion(Described):
    """A whole answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatChunkChoice(Described):
    """What an event adds to one of the answers."""

    index: int
    delta: dict[str, Any]
    finish_reason: str | None = None


class ChatCompletionChunk(Described):
    """The data of one event of a streamed answer; after the last one comes `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    """Empty in the event that tells what was used."""
    usage: Usage | None = None


class CompletionChoice(Described):
    """One of the continuations that were asked for."""

    index: int
    text: str
    finish_reason: str | None = None


class Completion(Described):
    """A whole continuation of a text, or what one event adds to it; after the last event comes `[DONE]`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Embedding(Described):
    """The vector of one text."""

    object: Literal["embedding"]
    index: Token
    embedding: list[float] | str
    """Numbers, or base64 of float32, little end first."""


class Embeddings(Described):
    """The vectors of texts, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(Described):
    """A name that may be sent as `model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: str
    """What the name stands for: `role`, `alias`, `service` or `model`."""
    task: str
    """What may be asked of it: `chat`, `embedding` or `reranking`."""
    context_length: Count | None = None
    """Tokens that prompt and answer may have together, as it is enforced now. Left out, like all that follows, while
    no server says it."""
    max_model_len: Count | None = None
    """The same in vLLM's words."""
    trained_context_length: Count | None = None
    max_output: Count | None = None
    capabilities: list[str] | None = None
    """What it is known to be able to do, as `tools`, `vision`, `thinking`, `json_schema`, `logprobs`."""
    lacks: list[str] | None = None
    """What it is known not to be able to do."""
    dimensions: Count | None = None
    """The length of its vectors."""
    architecture: str | None = None
    parameters: Count | None = None
    quantisation: str | None = None
    format: str | None = None
    size_bytes: Token | None = None
    """Of its weights."""
    loaded: bool | None = None
    memory_bytes: Token | None = None
    expires_at: float | None = None
    """When it will be dropped from memory, in seconds since the epoch."""


class ModelList(Described):
    """The names that may be sent as `model`."""

    object: Literal["list"]
    data: list[ModelCard]

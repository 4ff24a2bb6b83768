"""Pure: the bodies of OpenAI's Responses API, as far as it can be had without memory between requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from runtime.gateway.openapi.openai import DataUrl
from runtime.gateway.openapi.shapes import Asked, Count, Described, ModelName, Text, Token

Absent = Annotated[None, WithJsonSchema({"type": "null"})]
"""What may be named only to say that it is not wanted."""
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Summary = Literal["auto", "concise", "detailed"]
_Included = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class InputText(Described):
    """A text."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputRefusal(Described):
    """A text with which the model refused to answer."""

    type: Literal["refusal"]
    refusal: str


class InputImage(Described):
    """A picture, for models that see."""

    type: Literal["input_image"]
    image_url: DataUrl
    detail: Literal["low", "high", "auto", "original"] | None = None
    file_id: Absent = None


class InputAudio(Described):
    """A sound, for models that hear."""

    type: Literal["input_audio"]
    input_audio: dict[str, Any]


SaidPart = InputText | InputRefusal
GivenPart = InputText | InputRefusal | InputImage | InputAudio


class GivenMessage(Described):
    """What the model is told."""

    type: Literal["message"] | None = None
    role: Literal["user", "system", "developer"]
    content: str | Annotated[list[GivenPart], Field(min_length=1)]


class SaidMessage(Described):
    """What the model has said before."""

    type: Literal["message"] | None = None
    role: Literal["assistant"]
    content: str | Annotated[list[SaidPart], Field(min_length=1)]


class FunctionCall(Described):
    """A call of a function by the model."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: str
    """As JSON."""


class FunctionCallOutput(Described):
    """What a called function has returned."""

    type: Literal["function_call_output"]
    call_id: Text
    output: str | Annotated[list[GivenPart], Field(min_length=1)]


class ReasoningText(Described):
    """A piece of reasoning."""

    text: str


class Reasoning(Described):
    """What the model thought before it said something."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None


Item = GivenMessage | SaidMessage | FunctionCall | FunctionCallOutput | Reasoning


class ResponseTool(Described):
    """A function that the model may call."""

    type: Literal["function"]
    name: Text
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Described):
    """One of the tools."""

    type: Literal["function"]
    name: str


class AllowedTools(Described):
    """Some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1)]


class PlainFormat(Described):
    """Any text, or any JSON."""

    type: Literal["text", "json_object"]


class SchemaFormat(Described):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"]
    name: Text
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class TextOptions(Described):
    """How the answer is written."""

    format: PlainFormat | SchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Described):
    """How much the model thinks."""

    effort: _Effort | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None


class ResponsesRequest(Asked):
    """A request for a response. Null is as if a parameter was not there; what needs memory is refused."""

    model: ModelName
    input: str | Annotated[list[Item], Field(min_length=1)]
    """A text, or the whole conversation."""
    instructions: str | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    """For streams only."""
    store: bool | None = None
    """Nothing is kept, whatever it says."""
    background: Literal[False] | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedFunction | AllowedTools | None = None
    include: list[_Included] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    truncation: Literal["disabled"] | None = None
    n: Literal[1] | None = None
    previous_response_id: Absent = None
    conversation: Absent = None
    prompt: Absent = None
    context_management: Absent = None
    moderation: Absent = None
    messages: Absent = None
    max_tokens: Absent = None
    max_completion_tokens: Absent = None
    response_format: Absent = None
    reasoning_effort: Absent = None
    verbosity: Absent = None
    functions: Absent = None
    function_call: Absent = None
    logprobs: Absent = None


class ResponseUsage(Described):
    """How many tokens a response took."""

    input_tokens: Token
    output_tokens: Token
    total_tokens: Token
    estimated: Literal[True] | None = None
    """The endpoint did not say; this is the gateway's estimate."""


class ResponseItem(Described):
    """A message, a call of a function, or reasoning."""

    id: str
    type: Literal["message", "function_call", "reasoning"]
    status: str


class Response(Described):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[ResponseItem]
    usage: ResponseUsage | None


class ResponseEvent(Described):
    """The data of one event of a streamed response; `response.completed`, `.incomplete` or `.failed` is the last."""

    type: str
    sequence_number: Token

"""Pure: the bodies of Anthropic's Messages API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from runtime.gateway.openapi.shapes import Count, Described, ModelName, Text, Token

Nothing = Annotated[Any, WithJsonSchema({"enum": [None, False, 0, "", [], {}]})]
"""What may be there if it says nothing."""


class TextBlock(Described):
    """A text."""

    type: Literal["text"]
    text: str


class Base64Image(Described):
    """A picture itself."""

    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Text


class ImageBlock(Described):
    """A picture, for models that see. One that an address names is refused: nothing is fetched for a client."""

    type: Literal["image"]
    source: Base64Image


class SearchResultBlock(Described):
    """Something that was found."""

    type: Literal["search_result"]
    title: str
    source: str
    content: str | list[TextBlock]


class PlainSource(Described):
    """A document that is a text."""

    type: Literal["text"]
    data: str


class ContentSource(Described):
    """A document in parts."""

    type: Literal["content"]
    content: str | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock]


class DocumentBlock(Described):
    """A document; no model here reads PDF files."""

    type: Literal["document"]
    source: PlainSource | ContentSource


class ToolReferenceBlock(Described):
    """A tool that was found."""

    type: Literal["tool_reference"]
    tool_name: Text


class ToolResultBlock(Described):
    """What a tool has returned."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: str | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock] | None = None
    is_error: bool | None = None


class SystemBlock(Described):
    """Instructions in the middle of a conversation."""

    type: Literal["mid_conv_system"]
    content: str | list[TextBlock]


class ThinkingBlock(Described):
    """What the model thought before it said something."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Described):
    """The same, which only its maker can read; it is passed over."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Described):
    """A call of a tool by the model."""

    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]


class UserMessage(Described):
    """What the user says, and what tools have returned."""

    role: Literal["user"]
    content: str | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolResultBlock | SystemBlock]


class AssistantMessage(Described):
    """What the model has said. As the last one, the answer goes on where it ends."""

    role: Literal["assistant"]
    content: str | list[TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock]


class SystemMessage(Described):
    """Instructions in the middle of a conversation."""

    role: Literal["system"]
    content: str | list[TextBlock]


class Tool(Described):
    """A tool that the model may call."""

    type: Literal["custom"] | None = None
    name: Text
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class AnyTool(Described):
    """Whether the model may, must or must not call a tool."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class OneTool(Described):
    """The tool that the model must call."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class ThinkingOff(Described):
    """No thinking, or as much as the model likes."""

    type: Literal["disabled", "adaptive"]


class ThinkingOn(Described):
    """Thinking, within a budget: it becomes an effort, which is what the servers here know."""

    type: Literal["enabled"]
    budget_tokens: Count


class JsonFormat(Described):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Described):
    """How the answer is made."""

    format: JsonFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class CountRequest(Described):
    """A prompt whose tokens are to be counted. Null is as if a parameter was not there."""

    model: ModelName
    messages: Annotated[list[UserMessage | AssistantMessage | SystemMessage], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: AnyTool | OneTool | None = None
    thinking: ThinkingOff | ThinkingOn | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None


class Metadata(Described):
    """Who asks."""

    user_id: str | None = None


class MessagesRequest(CountRequest):
    """A request for the next message of a conversation. Null is as if a parameter was not there."""

    max_tokens: Count
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[Text] | None = None
    metadata: Metadata | None = None
    mcp_servers: Nothing = None
    container: Nothing = None


class MessageUsage(Described):
    """How many tokens a message took."""

    input_tokens: Token
    output_tokens: Token


class ContentBlock(Described):
    """A text, a thought or a call of a tool."""

    type: Literal["text", "thinking", "tool_use"]


class AnthropicMessage(Described):
    """A whole answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(Described):
    """The data of one event of a streamed answer, from `message_start` to `message_stop`."""

    type: str


class TokenCount(Described):
    """How many tokens a prompt has."""

    input_tokens: Token


ContentSource.model_rebuild()

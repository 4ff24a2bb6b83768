"""Pure: a JSON object becomes a `Request`, or a refusal that names the parameter.

What this worker cannot do yet is refused, never ignored; null and empty values, and fields nobody knows, are let pass.
"""

from dataclasses import dataclass
from typing import Any

from runtime.worker import options
from runtime.worker.errors import RequestError
from runtime.worker.fields import Fields, valid_text
from runtime.worker.messages import Message, parse_messages
from runtime.worker.tools.asked import ToolUse, parse_tools, refuse_tools
from runtime.worker.tools.formats import JsonFormat, parse_format

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_TOKENS_LIMIT = 1 << 31
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
"""Values of OpenAI's `reasoning_effort`."""
COMPLETION_MAX_TOKENS = 16
"""What OpenAI's text completions generate when `max_tokens` is absent."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation that the model's chat template turns into text."""

    messages: tuple[Message, ...]
    is_continued: bool = False
    """The answer goes on where the last message, the assistant's, ends."""
    effort: str | None = None
    """How much the model is to think, in OpenAI's words; `none` is not at all, None is up to the model."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text to continue."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Tokens to continue; the model's vocabulary bounds them."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. 0 means greedy, and off for `top_k`, `min_p` and penalties."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids with what is added to their logits, in the order of the ids."""


@dataclass(frozen=True, slots=True)
class Request:
    """A valid request for text. `max_tokens` none means: up to the end of the context."""

    prompt: ChatPrompt | TextPrompt | TokenPrompt
    sampling: Sampling
    stop: tuple[str, ...]
    max_tokens: int | None
    is_stream: bool
    include_usage: bool
    choices: int = 1
    """Answers to the one prompt."""
    logprobs: int | None = None
    """How many of the most probable tokens are told beside each one of the answer; none tells nothing."""
    tools: ToolUse | None = None
    format: JsonFormat | None = None
    """None means text."""
    token_ids: bool = False
    """Whether the answer tells the ids of its tokens."""


def parse_chat(body: dict[str, Any], model: str) -> Request:
    """Parse the body of `/v1/chat/completions` for a worker that serves `model`.

    Raises RequestError.
    """
    fields = Fields(body)
    prompt = _conversation(fields)
    _refuse_chat_features(fields)
    limit = fields.integer("max_completion_tokens", 1, MAX_TOKENS_LIMIT)
    older_limit = fields.integer("max_tokens", 1, MAX_TOKENS_LIMIT)
    logprobs = options.chat_logprobs(fields)
    return _request(fields, model, prompt, older_limit if limit is None else limit, logprobs, parse_tools(fields))


def parse_completion(body: dict[str, Any], model: str) -> Request:
    """Parse the body of `/v1/completions` for a worker that serves `model`.

    Raises RequestError.
    """
    fields = Fields(body)
    prompt = _prompt(body.get("prompt"))
    _refuse_completion_features(fields)
    limit = fields.integer("max_tokens", 1, MAX_TOKENS_LIMIT)
    logprobs = options.completion_logprobs(fields)
    return _request(fields, model, prompt, COMPLETION_MAX_TOKENS if limit is None else limit, logprobs)


def _request(
    fields: Fields,
    model: str,
    prompt: ChatPrompt | TextPrompt | TokenPrompt,
    max_tokens: int | None,
    logprobs: int | None,
    tools: ToolUse | None = None,
) -> Request:
    check_model(fields, model)
    is_stream = fields.boolean("stream")
    token_ids = fields.boolean("return_token_ids")
    if token_ids and is_stream:
        raise RequestError("return_token_ids is not supported with stream=true.", param="return_token_ids")
    return Request(
        prompt=prompt,
        sampling=_sampling(fields),
        stop=_stop(fields.get("stop")),
        max_tokens=max_tokens,
        is_stream=is_stream,
        include_usage=_include_usage(fields, is_stream),
        choices=options.choices(fields),
        logprobs=logprobs,
        tools=tools,
        format=parse_format(fields),
        token_ids=token_ids,
    )


def check_model(fields: Fields, model: str) -> None:
    """Raise RequestError for a request to another model than `model`."""
    for other in ("adapters", "draft_model"):  # mlx_lm.server loads what these name
        if fields.get(other) is not None:
            message = f"{other} cannot be chosen by a request: this worker serves the weights that it was started with."
            raise RequestError(message, param=other)
    name = fields.get("model")
    if name is None:
        return
    if not isinstance(name, str):
        raise RequestError("model must be a string.", param="model")
    if name != model:
        message = f"The model {valid_text(name, 'model')!r} does not exist here; this worker serves {model!r}."
        raise RequestError(message, param="model", code="model_not_found", status=404)


def _sampling(fields: Fields) -> Sampling:
    return Sampling(
        temperature=fields.number("temperature", 0, 2, default=1.0),
        top_p=fields.number("top_p", 0, 1, default=1.0),
        top_k=max(0, fields.integer("top_k", -1, 1 << 31) or 0),
        min_p=fields.number("min_p", 0, 1, default=0.0),
        seed=fields.integer("seed", -(1 << 63), (1 << 63) - 1),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 10, default=1.0),
        frequency_penalty=fields.number("frequency_penalty", -2, 2, default=0.0),
        presence_penalty=fields.number("presence_penalty", -2, 2, default=0.0),
        logit_bias=options.logit_bias(fields),
    )


def _include_usage(fields: Fields, is_stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise RequestError("stream_options must be an object.", param="stream_options")
    if not is_stream:
        raise RequestError("stream_options is only allowed with stream=true.", param="stream_options")
    return Fields(options, "stream_options.").boolean("include_usage")


def _stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError("stop must be a nonempty string or a list of nonempty strings.", param="stop")
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop may hold at most {MAX_STOPS} strings.", param="stop")
    if any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise RequestError(f"A stop string may have at most {MAX_STOP_LENGTH} characters.", param="stop")
    return tuple(valid_text(stop, "stop") for stop in stops)


def _conversation(fields: Fields) -> ChatPrompt:
    messages = parse_messages(fields.get("messages"))
    effort = fields.get("reasoning_effort")
    if effort is not None and effort not in EFFORTS:
        raise RequestError(f"reasoning_effort must be one of {', '.join(EFFORTS)}.", param="reasoning_effort")
    is_continued = fields.boolean("continue_final_message")
    if fields.boolean("add_generation_prompt") and is_continued:
        message = "add_generation_prompt must be false where continue_final_message is true: the answer has begun."
        raise RequestError(message, param="add_generation_prompt")
    if is_continued and (messages[-1].role != "assistant" or messages[-1].calls):
        message = "continue_final_message needs a last message of the assistant's, without tool calls."
        raise RequestError(message, param="continue_final_message")
    return ChatPrompt(messages, is_continued, effort)


def _prompt(value: object) -> TextPrompt | TokenPrompt:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str) and value:
        return TextPrompt(valid_text(value, "prompt"))
    if isinstance(value, list) and value and all(type(token) is int and token >= 0 for token in value):
        return TokenPrompt(tuple(value))
    message = "prompt must be one nonempty string, or a nonempty list of token ids; several prompts are not supported."
    raise RequestError(message, param="prompt")


def _refuse_chat_features(fields: Fields) -> None:
    fields.refuse("audio", "audio")
    fields.refuse("prediction", "predicted outputs")
    if fields.get("modalities") not in (None, [], ["text"]):
        fields.refuse("modalities", "audio")


def _refuse_completion_features(fields: Fields) -> None:
    refuse_tools(fields)
    if fields.boolean("echo"):
        raise RequestError("echo is not supported: put the prompt before the answer yourself.", param="echo")
    fields.refuse("suffix", "fill-in-the-middle")

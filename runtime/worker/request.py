"""Pure: a JSON object becomes a `Request`, or a refusal that names the parameter.

What this worker cannot do yet is refused, never ignored; null and empty values, and fields nobody knows, are let pass.
"""

from dataclasses import dataclass
from typing import Any

from runtime.worker.errors import RequestError
from runtime.worker.fields import Fields, valid_text

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_TOKENS_LIMIT = 1 << 31
COMPLETION_MAX_TOKENS = 16
"""What OpenAI's text completions generate when `max_tokens` is absent."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, its parts joined."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation that the model's chat template turns into text."""

    messages: tuple[Message, ...]


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


def parse_chat(body: dict[str, Any], model: str) -> Request:
    """Parse the body of `/v1/chat/completions` for a worker that serves `model`.

    Raises RequestError.
    """
    fields = Fields(body)
    prompt = ChatPrompt(_messages(body.get("messages")))
    _refuse_chat_features(fields)
    limit = fields.integer("max_completion_tokens", 1, MAX_TOKENS_LIMIT)
    older_limit = fields.integer("max_tokens", 1, MAX_TOKENS_LIMIT)
    return _request(fields, model, prompt, older_limit if limit is None else limit)


def parse_completion(body: dict[str, Any], model: str) -> Request:
    """Parse the body of `/v1/completions` for a worker that serves `model`.

    Raises RequestError.
    """
    fields = Fields(body)
    prompt = _prompt(body.get("prompt"))
    _refuse_completion_features(fields)
    limit = fields.integer("max_tokens", 1, MAX_TOKENS_LIMIT)
    return _request(fields, model, prompt, COMPLETION_MAX_TOKENS if limit is None else limit)


def _request(
    fields: Fields, model: str, prompt: ChatPrompt | TextPrompt | TokenPrompt, max_tokens: int | None
) -> Request:
    _check_model(fields, model)
    if (fields.integer("n", 1, 128) or 1) != 1:
        raise RequestError("Only n=1 is supported.", param="n")
    fields.refuse("logit_bias", "logit bias")
    is_stream = fields.boolean("stream")
    return Request(
        prompt=prompt,
        sampling=_sampling(fields),
        stop=_stop(fields.get("stop")),
        max_tokens=max_tokens,
        is_stream=is_stream,
        include_usage=_include_usage(fields, is_stream),
    )


def _check_model(fields: Fields, model: str) -> None:
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


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise RequestError("messages must be a list of messages.", param="messages")
    if not value:
        raise RequestError("messages must hold at least one message.", param="messages")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(value))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object.", param=where)
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        arrives = " Messages of tools arrive with tool calls." if role in ("tool", "function") else ""
        raise RequestError(f"{where}.role must be one of {', '.join(_ROLES)}.{arrives}", param=f"{where}.role")
    if value.get("tool_calls") or value.get("function_call"):
        raise RequestError(f"{where}.tool_calls arrives with tool calls.", param=f"{where}.tool_calls")
    content = value.get("content")
    if content is None and role == "assistant":
        content = ""
    return Message(_ROLES[role], _content(content, f"{where}.content"))


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return valid_text(value, where)
    if not isinstance(value, list):
        raise RequestError(f"{where} must be a string or a list of parts.", param=where)
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise RequestError(f"{where}[{index}] must be an object.", param=f"{where}[{index}]")
        if part.get("type") != "text":
            raise RequestError("Only parts of type text are supported.", param=f"{where}[{index}].type")
        text = part.get("text")
        if not isinstance(text, str):
            raise RequestError(f"{where}[{index}].text must be a string.", param=f"{where}[{index}].text")
        texts.append(valid_text(text, f"{where}[{index}].text"))
    return "".join(texts)


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
    for name in ("tools", "functions"):
        fields.refuse(name, "tool calls")
    for name in ("tool_choice", "function_call"):
        if fields.get(name) not in (None, "none", "auto"):
            fields.refuse(name, "tool calls")
    if fields.get("response_format") != {"type": "text"}:
        fields.refuse("response_format", "structured output")
    if fields.boolean("logprobs"):
        fields.refuse("logprobs", "log probabilities")
    fields.refuse("top_logprobs", "log probabilities")
    fields.refuse("audio", "audio")
    fields.refuse("prediction", "predicted outputs")
    if fields.get("modalities") not in (None, [], ["text"]):
        fields.refuse("modalities", "audio")


def _refuse_completion_features(fields: Fields) -> None:
    if fields.get("logprobs") is not None:
        raise RequestError("logprobs arrives with log probabilities.", param="logprobs")
    if fields.boolean("echo"):
        fields.refuse("echo", "log probabilities")
    fields.refuse("suffix", "fill-in-the-middle")
    if (fields.integer("best_of", 1, 128) or 1) != 1:
        raise RequestError("Only best_of=1 is supported.", param="best_of")

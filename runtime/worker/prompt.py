"""Pure: a request's prompt becomes tokens that fit the context."""

from dataclasses import dataclass
from typing import Any, assert_never

from runtime.worker import options
from runtime.worker.errors import RequestError
from runtime.worker.request import ChatPrompt, Request, TextPrompt, TokenPrompt
from runtime.worker.tools.conversation import ToolSyntax, render

MAX_TOLD = 1 << 19
"""Log probabilities of one answer that does not stream, in all its choices. Each takes about half a kilobyte."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model bounds."""

    context_length: int
    """Tokens of prompt and answer together."""
    vocabulary: int
    """Token ids are below this."""
    token_length: int
    """Characters of the longest token: a text has at least its length divided by this many tokens."""


def encode(request: Request, tokenizer: Any, limits: Limits, syntax: ToolSyntax) -> list[int]:
    """Return the prompt's tokens.

    `tokenizer` is mlx-lm's wrapper; `syntax` what `tool_syntax` found out about it.

    Raises RequestError: `context_length_exceeded`, or a conversation that the model's template refuses.
    """
    options.check_tokens(request.sampling.logit_bias, limits.vocabulary)
    tokens = tokenise(request, tokenizer, limits, syntax)
    param = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
    if not tokens:
        raise RequestError(f"{param} has no tokens.", param=param)
    if len(tokens) >= limits.context_length:
        raise _too_long(f"{len(tokens)}", limits, param)
    _check_told(request, limits.context_length - len(tokens))
    return tokens


def tokenise(request: Request, tokenizer: Any, limits: Limits, syntax: ToolSyntax) -> list[int]:
    """Return the prompt's tokens, also where there are somewhat more of them than the context holds.

    Raises RequestError: a conversation that the model's template refuses, or `context_length_exceeded` for a text that
    is far too long: it would keep the tokenizer from others.
    """
    prompt = request.prompt
    match prompt:
        case ChatPrompt():
            return _encode_chat(prompt, request, tokenizer, limits, syntax)
        case TextPrompt():
            return _encode_text(prompt.text, tokenizer, limits, param="prompt")
        case TokenPrompt():
            if max(prompt.tokens) >= limits.vocabulary:
                message = f"prompt has a token id that is not below {limits.vocabulary}."
                raise RequestError(message, param="prompt")
            return list(prompt.tokens)
        case _:
            assert_never(prompt)


def answer_limit(request: Request, prompt_length: int, limits: Limits) -> int:
    """Return how many tokens the answer may have: `max_tokens` is an upper bound and so is the end of the context.

    Without `max_tokens` also the log probabilities that it may tell bound it.
    """
    room = limits.context_length - prompt_length
    return min(room, _most_told(request, room) if request.max_tokens is None else request.max_tokens)


def _most_told(request: Request, room: int) -> int:
    """Return for how many tokens a choice may tell log probabilities; `room` where nothing else bounds them."""
    if request.logprobs is None or request.is_stream:
        return room
    return MAX_TOLD // (request.choices * (request.logprobs + 1))


def _check_told(request: Request, room: int) -> None:
    most = _most_told(request, room)
    if request.max_tokens is not None and min(request.max_tokens, room) > most:
        message = (
            f"max_tokens is at most {most} with so many choices and log probabilities: an answer tells {MAX_TOLD} of "
            "them in all. Ask for fewer, or stream."
        )
        raise RequestError(message, param="max_tokens")


def _encode_chat(prompt: ChatPrompt, request: Request, tokenizer: Any, limits: Limits, syntax: ToolSyntax) -> list[int]:
    if not tokenizer.has_chat_template:
        message = "This model has no chat template; use /v1/completions."
        raise RequestError(message, param="messages")
    _check_length(sum(len(message.content) for message in prompt.messages), limits, "messages")
    tools = request.tools
    is_constrained = request.format is not None or (tools is not None and tools.must_call)
    if is_constrained and prompt.is_continued:
        message = "continue_final_message is not possible with a form that the whole answer must have."
        raise RequestError(message, param="continue_final_message")
    text = render(
        prompt.messages,
        tools,
        tokenizer,
        syntax,
        is_constrained=is_constrained,
        is_continued=prompt.is_continued,
        effort=prompt.effort,
    )
    _check_length(len(text), limits, "messages")
    return list(tokenizer.encode(text, add_special_tokens=False))


def _encode_text(text: str, tokenizer: Any, limits: Limits, *, param: str) -> list[int]:
    _check_length(len(text), limits, param)
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return list(tokenizer.encode(text, add_special_tokens=not begins))


def _check_length(characters: int, limits: Limits, param: str) -> None:
    """Refuse a hopeless text before the tokenizer spends seconds on it."""
    least = characters // limits.token_length
    if least >= limits.context_length:
        raise _too_long(f"at least {least}", limits, param)


def _too_long(tokens: str, limits: Limits, param: str) -> RequestError:
    message = (
        f"The context of this model holds {limits.context_length} tokens; the prompt has {tokens} "
        "and an answer needs at least one."
    )
    return RequestError(message, param=param, code="context_length_exceeded")

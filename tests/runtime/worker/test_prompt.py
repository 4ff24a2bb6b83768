"""Prompts become tokens that fit, or refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.worker.errors import RequestError
from runtime.worker.messages import Message
from runtime.worker.prompt import Limits, answer_limit, encode
from runtime.worker.request import ChatPrompt, Request, Sampling, TextPrompt, TokenPrompt
from runtime.worker.tools.conversation import ToolSyntax
from runtime.worker.tools.families import GENERIC, Family
from runtime.worker.tools.reading import parse_json

LIMITS = Limits(context_length=20, vocabulary=320, token_length=4)
IN_WORDS = ToolSyntax(Family(GENERIC, "<tool_call>", "</tool_call>"), parse_json, is_native=False)


class Words:
    """A tokenizer of words, with a begin token that `encode` adds."""

    bos_token = "<s>"
    has_chat_template = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [0] * add_special_tokens + [0 if word == "<s>" else 1 for word in text.split()]

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "<s> " + " ".join(message["content"] for message in messages)


def request(prompt: Any, max_tokens: int | None = None) -> Request:
    return Request(prompt, Sampling(), (), max_tokens, is_stream=False, include_usage=False)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (TextPrompt("a b"), [0, 1, 1]),
        (TextPrompt("<s> a b"), [0, 1, 1]),
        (TokenPrompt((5, 6)), [5, 6]),
        (ChatPrompt((Message("user", "a"), Message("user", "b"))), [0, 1, 1]),
    ],
)
def test_the_begin_token_comes_once(prompt: Any, tokens: list[int]) -> None:
    assert encode(request(prompt), Words(), LIMITS, IN_WORDS) == tokens


@pytest.mark.parametrize(
    ("prompt", "param", "code"),
    [
        (TokenPrompt((1,) * 20), "prompt", "context_length_exceeded"),
        (TextPrompt("a " * 19), "prompt", "context_length_exceeded"),
        (TextPrompt("a" * 80), "prompt", "context_length_exceeded"),
        (ChatPrompt((Message("user", "a" * 80),)), "messages", "context_length_exceeded"),
        (TokenPrompt((320,)), "prompt", None),
    ],
)
def test_what_does_not_fit_is_refused(prompt: Any, param: str, code: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        encode(request(prompt), Words(), LIMITS, IN_WORDS)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)


def test_a_model_without_a_template_refuses_chats() -> None:
    tokenizer = Words()
    tokenizer.has_chat_template = False
    with pytest.raises(RequestError, match="chat template") as caught:
        encode(request(ChatPrompt((Message("user", "a"),))), tokenizer, LIMITS, IN_WORDS)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(("wanted", "given_"), [(None, 15), (3, 3), (100, 15)])
def test_the_answer_ends_at_max_tokens_or_with_the_context(wanted: int | None, given_: int) -> None:
    assert answer_limit(request(TextPrompt("a"), wanted), 5, LIMITS) == given_


LONG = Limits(context_length=100_000, vocabulary=320, token_length=4)


@pytest.mark.parametrize(("choices", "top", "most"), [(1, 0, 99_999), (16, 20, 1560), (1, 20, 24_966)])
def test_log_probabilities_bound_an_answer_that_does_not_stream(choices: int, top: int, most: int) -> None:
    wanted = replace(request(TextPrompt("a")), choices=choices, logprobs=top)
    assert answer_limit(wanted, 1, LONG) == most
    assert answer_limit(replace(wanted, is_stream=True), 1, LONG) == 99_999
    encode(replace(wanted, max_tokens=most), Words(), LONG, IN_WORDS)
    if most < 99_999:
        with pytest.raises(RequestError, match=f"at most {most}") as caught:
            encode(replace(wanted, max_tokens=most + 1), Words(), LONG, IN_WORDS)
        assert caught.value.param == "max_tokens"
        encode(replace(wanted, max_tokens=most + 1, is_stream=True), Words(), LONG, IN_WORDS)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return mlx_lm.load(str(tiny_model_dir))[1]


@given(text=st.text(min_size=1))
def test_a_text_is_never_refused_early_that_would_have_fitted(text: str, tokenizer: Any) -> None:
    longest = max(len(token) for token in tokenizer.get_vocab())
    tokens = len(tokenizer.encode(text))
    fitting = Limits(context_length=tokens + 1, vocabulary=320, token_length=longest)
    assert len(encode(request(TextPrompt(text)), tokenizer, fitting, IN_WORDS)) == tokens

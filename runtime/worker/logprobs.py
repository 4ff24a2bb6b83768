"""Pure: the shapes of OpenAI's log probabilities.

They are those of the model's own distribution, before penalties, biases, temperature and what else narrows the choice.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from runtime.worker.batch import TokenReport


def chat(tokens: Iterable[TokenReport]) -> dict[str, Any]:
    """Build the `logprobs` of a choice of a chat."""
    content = [
        {
            **_entry(token.data, token.logprob),
            "top_logprobs": [_entry(data, logprob) for data, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion(tokens: Sequence[TokenReport]) -> dict[str, Any]:
    """Build the `logprobs` of a choice of a text completion; offsets count characters from the answer's begin.

    The chosen token is among the `top_logprobs` also where it is not of the most probable, as OpenAI has it.
    """
    return {
        "tokens": [_name(token.data) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def _top(token: TokenReport) -> dict[str, float]:
    top: dict[str, float] = {}
    for data, logprob in (*token.top, (token.data, token.logprob)):
        top.setdefault(_name(data), logprob)
    return top


def _name(data: bytes) -> str:
    """Spell a token as text, a part of a character as OpenAI does: `bytes:\\xe2\\x82`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

"""Pure: the parts of a request that ask for several answers, for log probabilities or for biased tokens."""

import math

from runtime.worker.errors import RequestError
from runtime.worker.fields import Fields

MAX_CHOICES = 16
"""Answers to one prompt; each needs a place of its own. OpenAI's bound is 128."""
MAX_BIASES = 1024
BIAS_BOUND = 100.0
"""OpenAI's: -100 all but forbids a token and 100 all but demands it."""
MAX_CHAT_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5


def choices(fields: Fields) -> int:
    """Return how many answers to give, from `n` and, of completions, `best_of`.

    Raises RequestError: also for a `best_of` that would choose among more answers than it returns.
    """
    count = fields.integer("n", 1, MAX_CHOICES) or 1
    best_of = fields.integer("best_of", 1, MAX_CHOICES)
    if best_of not in (None, count):
        message = f"best_of must equal n, which is {count}: this worker returns every answer that it generates."
        raise RequestError(message, param="best_of")
    return count


def chat_logprobs(fields: Fields) -> int | None:
    """Return how many of the most probable tokens to tell with each one, from `logprobs` and `top_logprobs`."""
    is_wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_CHAT_LOGPROBS)
    if is_wanted:
        return top or 0
    if top:
        raise RequestError("top_logprobs is only allowed with logprobs=true.", param="top_logprobs")
    return None


def completion_logprobs(fields: Fields) -> int | None:
    """Return how many of the most probable tokens to tell with each one, from `logprobs`."""
    return fields.integer("logprobs", 0, MAX_COMPLETION_LOGPROBS)


def logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    """Return token ids with their biases, in the order of the ids; the vocabulary bounds them later.

    Raises RequestError, which names the entry.
    """
    value = fields.get("logit_bias")
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise RequestError("logit_bias must be an object of token ids and biases.", param="logit_bias")
    if len(value) > MAX_BIASES:
        raise RequestError(f"logit_bias may hold at most {MAX_BIASES} entries.", param="logit_bias")
    biases: dict[int, float] = {}
    for name, bias in value.items():
        token = _token(name)
        where = f"logit_bias[{token}]"
        if token in biases:
            raise RequestError(f"{where} is there twice, in two spellings.", param=where)
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise RequestError(f"{where} must be a number.", param=where)
        if not -BIAS_BOUND <= bias <= BIAS_BOUND or math.isnan(bias):
            raise RequestError(f"{where} must be between -{BIAS_BOUND:g} and {BIAS_BOUND:g}.", param=where)
        biases[token] = float(bias)
    return tuple(sorted(biases.items()))


def check_tokens(biases: tuple[tuple[int, float], ...], vocabulary: int) -> None:
    """Refuse a bias on what is no token of the model; raises RequestError."""
    for token, _ in biases:
        if token >= vocabulary:
            where = f"logit_bias[{token}]"
            raise RequestError(f"{where} names no token: ids are below {vocabulary}.", param=where)


def _token(name: str) -> int:
    # Longer than any id: int() of thousands of digits takes its time, or raises.
    if not (name.isascii() and name.isdigit() and len(name) <= 10):
        shown = name[:20].encode("utf-8", "replace").decode()  # half a surrogate pair cannot be answered
        raise RequestError(f"logit_bias[{shown!r}] is no token id.", param=f"logit_bias[{shown}]")
    return int(name)

"""Pure: the parameters of OpenAI's API that an endpoint may be spared, by name."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from schemas.problems import nearest

DROPPABLE = frozenset(
    {
        *("best_of", "dimensions", "echo", "encoding_format", "frequency_penalty", "function_call", "functions"),
        *("logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "metadata", "min_p", "modalities", "n"),
        *("parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key", "reasoning_effort"),
        *("repetition_penalty", "response_format", "safety_identifier", "seed", "service_tier", "stop", "store"),
        *("stream_options", "suffix", "temperature", "tool_choice", "tools", "top_k", "top_logprobs", "top_p"),
        *("truncate", "user", "verbosity", "web_search_options"),
    }
)
"""Of chat and text completions, embeddings and reranking; with what most servers understand beside them (`top_k`,
`min_p`, `repetition_penalty`, `truncate`). What says who is asked, and what, cannot be left out."""

_ESSENTIAL = frozenset({"model", "messages", "prompt", "input", "query", "documents", "stream"})


def _is_known(name: str) -> str:
    """Refuse a name that no request has; a misspelt one would spare the endpoint nothing."""
    if name in _ESSENTIAL:
        raise ValueError(f"'{name}' says what is asked: it cannot be left out of requests")
    if name not in DROPPABLE:
        guess = nearest(name, DROPPABLE)
        hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(sorted(DROPPABLE))}"
        raise ValueError(f"'{name}' is no parameter of OpenAI's API; {hint}")
    return name


ParameterName = Annotated[str, AfterValidator(_is_known)]
"""One of `DROPPABLE`."""

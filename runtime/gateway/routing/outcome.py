"""Pure: what one attempt's end means, for the breaker and for the request. The table of the gateway's specification."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from runtime.gateway.routing.breaker import Effect

Fault = Literal[
    "refused",
    "unreachable",
    "name not found",
    "connect timeout",
    "TLS error",
    "connection limit",
    "reset",
    "bad answer",
    "no first content",
    "stalled",
    "ended early",
]
"""How an exchange with an endpoint can break, apart from the statuses that it answers with."""

Next = Literal["next", "pass", "stop"]
"""What the request does: try another endpoint, pass the answer on, or end."""

DEFAULT_BUSY_S = 1.0
"""How long a busy endpoint that names no time is skipped."""
LOADING_S = 5.0
"""How long an endpoint that is loading and names no time is skipped."""
ABSENT_S = 30.0
"""How long an endpoint without the model comes after all others: the default interval of health checks."""
LONGEST_BUSY_S = 300.0
LOADING: Literal["loading"] = "loading"
"""The label of an endpoint that brings its model into memory."""
COLD: Literal["cold"] = "cold"
"""The label of one whose model is not in memory, said to a probe: a client's request would bring it there."""
MODEL_FAILED: Literal["model failed"] = "model failed"
"""The label of one that could not bring its model into memory, and tries again later."""
LONGEST_FAILED_S = 60.0
"""How long such an endpoint is skipped at most, whatever it says: somebody may mend it meanwhile."""
ABSENT: Literal["model absent"] = "model absent"
"""The label of an endpoint that has not got the model, or not the path."""
REFUSED: Literal["credentials refused"] = "credentials refused"
"""The label of an endpoint that does not take our key: the files have to be mended."""
BUSY: Literal["busy"] = "busy"
"""The label of an endpoint that has too much to do now."""
PASSING = frozenset({BUSY, LOADING})
"""Labels of endpoints that say that they will answer soon."""

_BUSY_WORDS = ("busy", "overloaded", "queue is full", "too many requests", "capacity")
_OVERFLOW_WORDS = (
    "context_length_exceeded",  # OpenAI's code, and our worker's
    "exceed_context_size_error",  # llama.cpp since b6400 (its pull request 15780)
    "exceeds the available context size",  # llama.cpp before, LocalAI
    "maximum context length is",  # vLLM and OpenAI
    "the model's context length is only",  # vLLM since 0.16
    "than the maximum model length of",  # vLLM, embeddings
    "than the model's context length",  # SGLang
    "length exceeds the context length",  # Ollama, `/api/embed`: with 400, 413 or 500
    "length exceeds maximum context length",  # Ollama before 0.5
    "is greater than the context length",  # LM Studio 0.3, in the stream
    "tokens when context the overflows",  # LM Studio 0.3
    "exceed context window of",  # llama-cpp-python
    "`inputs` must have less than",  # TEI, with 422
)
"""What engines say of a prompt that is too long, lower case, as found in their sources and their users' reports."""
_TEI_ERROR = '"error_type"'
_UNKNOWN_MODEL = ("model_not_found", "invalid model: ")
"""What OpenAI-compatible servers and Infinity say, with status 400, of a model that they have not got."""
_COLD_CODE = "model_cold"
_FAILED_CODE = "model_failed"
"""Error codes of our worker."""
_MODEL_WORDS = ("model", "not found", "does not exist")
_STOCK_ERROR = re.compile(r'\s*\{\s*"error"\s*:\s*"')
"""How `mlx_lm.server` reports every error of its engine, with status 404: a text where others have an object."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an attempt's end means."""

    label: str
    """A few words for metrics and messages; one of a small fixed set."""
    effect: Effect
    then: Next
    busy_s: float = 0.0
    """How long the endpoint is skipped although nothing is wrong with it."""
    absent_s: float = 0.0
    """How long other endpoints are preferred, because this one has not got the model or does not take our key."""

    @property
    def is_passing(self) -> bool:
        """Whether the endpoint says that it will answer soon."""
        return self.label in PASSING


SILENT = frozenset({"no first content", "stalled"})
"""Labels of endpoints that take requests and give no token."""
UNHEARD = frozenset(
    {
        "refused",
        "unreachable",
        "name not found",
        "connect timeout",
        "TLS error",
        "connection limit",
        "reset",
        "client left",
        "outrun",
        "out of time",
        "simulated failure",
        *SILENT,
    }
)
"""Labels of attempts after which nothing is known of the endpoint, or only that it says nothing."""
SUCCESS = Verdict("ok", "success", "pass")
NOT_SUPPORTED = "not supported"
"""The label of an endpoint that cannot do what is asked at all."""
WRONG_DIMENSION = Verdict("wrong dimension", "neutral", "next")
"""Vectors of another length than the role pins: other roles may want these."""
CONTEXT_OVERFLOW = Verdict("context overflow", "neutral", "pass")
"""A prompt that is longer than what the endpoint can read: nobody's fault, and another role may read more."""
SKIPPED = Verdict("skipped", "success", "pass")
CLIENT_ERROR = Verdict("client error", "neutral", "pass")
UNFIT = Verdict("answer not in form", "neutral", "next")
"""A model that was asked in words did not answer in the form that it was asked for: another one may."""
NOT_CONTINUED = Verdict("not continued", "neutral", "next")
"""An endpoint that was asked to go on with another one's answer does not do so."""
COUNTED = Verdict("ok", "neutral", "pass")
"""The tokens of a prompt were counted: no sign that the model answers."""
CLIENT_LEFT = Verdict("client left", "neutral", "stop")
SIMULATED = Verdict("simulated failure", "neutral", "next")
OUT_OF_TIME = Verdict("out of time", "neutral", "next")
"""The request's own time was over before the endpoint's was."""
OUTRUN = Verdict("outrun", "neutral", "stop")
"""Another endpoint, asked too, was faster."""
CONNECTION_LIMIT = Verdict("connection limit", "neutral", "next")


def judge_fault(fault: Fault, *, is_committed: bool) -> Verdict:
    """Judge an exchange that broke. After the commit point no other endpoint is tried."""
    if fault == "connection limit":
        return CONNECTION_LIMIT
    return Verdict(fault, "failure", "stop" if is_committed else "next")


def judge_status(status: int, retry_after: str | None, text: str) -> Verdict:
    """Judge a status of 300 or more, or of less than 200.

    `retry_after` is the header's value; `text` is the beginning of the body, lower case.
    """
    named_s = _seconds(retry_after)
    match status:
        case 400 | 413 | 422 | 500 if is_overflow(text):
            return CONTEXT_OVERFLOW
        case 424 if _TEI_ERROR in text:
            # Its own statement of what other servers answer with 500; a client's request is never the cause.
            return Verdict("server error", "failure", "next")
        case 400 if any(word in text for word in _UNKNOWN_MODEL):
            return Verdict(ABSENT, "neutral", "next", absent_s=ABSENT_S)
        case 503 if _COLD_CODE in text:
            return Verdict(COLD, "neutral", "next")
        case 503 if _FAILED_CODE in text:
            # Before the words of others: the reason of a failed load may name any of them.
            failed_s = LOADING_S if named_s is None else min(named_s, LONGEST_FAILED_S)
            return Verdict(MODEL_FAILED, "neutral", "next", busy_s=failed_s)
        case 503 if "loading" in text:
            return Verdict(LOADING, "neutral", "next", busy_s=LOADING_S if named_s is None else named_s)
        case 429:
            return Verdict(BUSY, "neutral", "next", busy_s=DEFAULT_BUSY_S if named_s is None else named_s)
        case 503 if named_s is not None or any(word in text for word in _BUSY_WORDS):
            return Verdict(BUSY, "neutral", "next", busy_s=DEFAULT_BUSY_S if named_s is None else named_s)
        case 501 | 505:
            return Verdict(NOT_SUPPORTED, "neutral", "pass")
        case 401 | 403:
            return Verdict(REFUSED, "neutral", "next", absent_s=ABSENT_S)
        case 404 if _STOCK_ERROR.match(text) and not any(word in text for word in _MODEL_WORDS):
            return Verdict("engine error", "failure", "next")
        case 404:
            return Verdict(ABSENT, "neutral", "next", absent_s=ABSENT_S)
        case _ if 400 <= status < 500:
            return Verdict("client error", "neutral", "pass")
        case _ if status >= 500:
            return Verdict("server error", "failure", "next")
        case _:
            # A redirect is never followed: URLs come from files only.
            return Verdict("bad answer", "failure", "next")


def is_overflow(text: str) -> bool:
    """Tell whether an error, lower case, says that a prompt is longer than what a model can read."""
    return any(words in text for words in _OVERFLOW_WORDS)


def judge_error_event(kind: str, text: str) -> Verdict:
    """Judge an error that an endpoint reports inside a stream before any content. `kind` is the error's `type`."""
    if is_overflow(kind) or is_overflow(text):
        return CONTEXT_OVERFLOW
    if kind == "invalid_request_error":
        return Verdict("client error", "neutral", "pass")
    if "loading" in text:
        return Verdict(LOADING, "neutral", "next", busy_s=LOADING_S)
    if any(word in text for word in _BUSY_WORDS):
        return Verdict(BUSY, "neutral", "next", busy_s=DEFAULT_BUSY_S)
    return Verdict("server error", "failure", "next")


def _seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date counts as the default, so that no clock is compared."""
    if retry_after is None:
        return None
    value = retry_after.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_BUSY_S)
    return LOADING_S if value else None

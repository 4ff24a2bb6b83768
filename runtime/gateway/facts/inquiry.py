"""Pure: what to ask a server about its models, and what its answers say of each. The files say which kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from runtime.gateway.facts.answers import Answers, Question, Reader, is_good
from runtime.gateway.facts.engines.infinity import INFINITY
from runtime.gateway.facts.engines.llama_cpp import LLAMA_CPP
from runtime.gateway.facts.engines.mlx_lm_server import MLX_LM_SERVER
from runtime.gateway.facts.engines.ollama import OLLAMA
from runtime.gateway.facts.engines.openai import OPENAI
from runtime.gateway.facts.engines.tei import TEI
from runtime.gateway.facts.engines.vllm import VLLM
from runtime.gateway.facts.engines.worker import WORKER
from runtime.gateway.facts.known import Facts

_READERS: Mapping[str, Reader] = {
    "mlx": WORKER,
    "worker": WORKER,
    "llama-server": LLAMA_CPP,
    "vllm": VLLM,
    "ollama": OLLAMA,
    "tei": TEI,
    "infinity": INFINITY,
    "mlx-lm-server": MLX_LM_SERVER,
}
"""By `EndpointIdentity.engine`; of all others, such as `openai` and `command`, the answers tell what they are."""
MOST_ROUNDS = 3
"""Of questions to one server: who it is, what it has, and the details of each model."""


def next_questions(engine: str, answers: Answers, models: frozenset[str]) -> tuple[Question, ...]:
    """Return what is still to be asked of a server; nothing once all is known, or while it answers nothing.

    `models` are the names, as the server knows them, of those that we use there.
    """
    reader = _READERS.get(engine, OPENAI)
    if not answers:
        return reader.first
    return tuple(question for question in reader.more(answers, models) if question not in answers)


def stamp_of(engine: str, answers: Answers, question: Question) -> str | None:
    """Return a text that changes whenever the answer to a question does; None where only asking tells."""
    return _READERS.get(engine, OPENAI).stamp(answers, question)


def facts_of(engine: str, answers: Answers, model: str, before: Facts, now: float) -> Facts:
    """Return what is known of a model after these answers; `now` is the event loop's clock.

    A server that did not answer properly keeps what it was known to be, but nobody knows any more what it holds in
    memory. What a proper answer does not say is unknown, whatever was known before, but for one thing: a model that was
    dropped from memory is loaded again with the context that it had, so that is kept as long as it is the same model.
    """
    if not any(map(is_good, answers.values())):
        return replace(before, is_loaded=None, expires_at=None, size_loaded=None, size_vram=None)
    found = _READERS.get(engine, OPENAI).read(answers, model)
    if found is None:
        return Facts(observed_at=now)
    is_same = (found.source, found.digest, found.trained_context_length) == (
        before.source,
        before.digest,
        before.trained_context_length,
    )
    if found.context_length is None and found.is_loaded is False and is_same:
        found = replace(found, context_length=before.context_length)
    return replace(found, observed_at=now)

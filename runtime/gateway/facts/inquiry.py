"""Pure: what to ask a server about its models, and what its answers say of each. The files say which kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

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
_BROKEN = frozenset({500, 502, 503, 504})
"""Statuses of pages that say something at other times."""
_LASTING = tuple(
    {field.name for field in fields(Facts)}
    - {"source", "observed_at", "can", "cannot", "is_loaded", "expires_at", "size_loaded", "size_vram"}
)
"""What of a model stays as it is, loaded or not."""
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


def is_changing(engine: str, answers: Answers) -> bool:
    """Tell whether a server was loading when it answered: it is worth asking again soon."""
    return _READERS.get(engine, OPENAI).is_changing(answers)


def facts_of(engine: str, answers: Answers, model: str, before: Facts, now: float) -> Facts:
    """Return what is known of a model after these answers; `now` is the event loop's clock.

    A server that did not answer properly keeps what it was known to be, but nobody knows any more what it holds in
    memory. Where only some of its answers are proper, the same holds for what the others would say. What all of them do
    not say is unknown, whatever was known before, but for one thing: a model that was dropped from memory is loaded
    again with the context that it had, so that is kept as long as it is the same model.
    """
    silent = replace(before, is_loaded=None, expires_at=None, size_loaded=None, size_vram=None)
    if not any(map(is_good, answers.values())):
        return silent
    found, is_whole = _READERS.get(engine, OPENAI).read(answers, model), _is_whole(engine, answers, model)
    if found is None:
        return Facts(observed_at=now) if is_whole else silent
    if not is_whole and before.is_known:
        if found.source != before.source:
            return silent  # who it is, too, one of them tells
        found = _filled(found, before)
    is_same = (found.source, found.digest, found.trained_context_length) == (
        before.source,
        before.digest,
        before.trained_context_length,
    )
    if found.context_length is None and found.is_loaded is False and is_same:
        found = replace(found, context_length=before.context_length)
    return replace(found, observed_at=now)


def _is_whole(engine: str, answers: Answers, model: str) -> bool:
    """Tell whether everything that is asked about a model was answered, and by a server in one and the same state."""
    is_asked = all(question in answers for question in _READERS.get(engine, OPENAI).first)
    is_asked = is_asked and not next_questions(engine, answers, frozenset({model}))
    return is_asked and not is_changing(engine, answers) and all(one.status not in _BROKEN for one in answers.values())


def _filled(found: Facts, before: Facts) -> Facts:
    """Return facts with what was known before in place of what nobody has said now, of the same model."""
    for now, then in ((found.digest, before.digest), (found.trained_context_length, before.trained_context_length)):
        if None not in (now, then) and now != then:
            return found
    unsaid = {name: getattr(before, name) for name in _LASTING if getattr(found, name) is None}
    if found.is_loaded is None and before.context_length is not None:
        unsaid["context_length"] = before.context_length  # only while it is loaded it is told for certain
    can, cannot = found.can | (before.can - found.cannot), found.cannot | (before.cannot - found.can)
    return replace(found, can=can, cannot=cannot, **unsaid)

"""Pure: a server of which the files say only that it speaks OpenAI's API: its models list tells which one it is.

Owners: vLLM says `vllm`, llama.cpp `llamacpp`, LM Studio `organization_owner`, Ollama `library` (and whoever published
a model), our worker and gateway `orchestrate`. Any other list is read for what many servers put into its rows.
"""

from __future__ import annotations

from runtime.gateway.facts.answers import Answers, Question, Reader, row_of, said, says_loading
from runtime.gateway.facts.engines.llama_cpp import LLAMA_CPP
from runtime.gateway.facts.engines.lm_studio import LM_STUDIO
from runtime.gateway.facts.engines.ollama import OLLAMA
from runtime.gateway.facts.engines.vllm import VLLM
from runtime.gateway.facts.engines.worker import read_row
from runtime.gateway.facts.known import Facts
from schemas.foreign import count, fields, flag, rows, text, texts

MODELS = Question("/v1/models")
_BY_OWNER = {"llamacpp": LLAMA_CPP, "organization_owner": LM_STUDIO, "library": OLLAMA, "vllm": VLLM}


def _more(answers: Answers, models: frozenset[str]) -> tuple[Question, ...]:
    reader = _reader(answers)
    if reader is None:
        return ()
    unasked = tuple(question for question in reader.first if question not in answers)
    return unasked or tuple(question for question in reader.more(answers, models) if question not in answers)


def _read(answers: Answers, model: str) -> Facts | None:
    reader = _reader(answers)
    found = reader.read(answers, model) if reader is not None else None
    if found is not None:
        return found
    row = row_of(rows(said(answers, MODELS).get("data")), model, "id")
    if not row:
        return None
    if row.get("owned_by") == "orchestrate":
        return read_row(row)
    meta = fields(row.get("meta"))
    lengths = (row.get("max_model_len"), row.get("loaded_context_length"), meta.get("n_ctx"), row.get("context_length"))
    return Facts(
        source="openai",
        context_length=next((number for length in lengths if (number := count(length))), None),
        trained_context_length=count(row.get("max_context_length")) or count(meta.get("n_ctx_train")),
        is_loaded=flag(row.get("loaded")),
        quantisation=text(row.get("quantization")),
    )


def _stamp(answers: Answers, question: Question) -> str | None:
    reader = _reader(answers)
    return None if reader is None else reader.stamp(answers, question)


def _reader(answers: Answers) -> Reader | None:
    owners = texts([row.get("owned_by") for row in rows(said(answers, MODELS).get("data"))])
    return next((reader for owner, reader in _BY_OWNER.items() if owner in owners), None)


def _is_changing(answers: Answers) -> bool:
    reader = _reader(answers)
    return says_loading(answers) if reader is None else reader.is_changing(answers)


OPENAI = Reader((MODELS,), _more, _read, _stamp, _is_changing)

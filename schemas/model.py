"""Pure: what is served: source, pinned revision, memory estimate. The content of `conf/models/*.yaml`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from schemas.base import COLD, HOT, Frozen

_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}"
_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_OLLAMA = rf"{_WORD}(/{_WORD})*(:[A-Za-z0-9_][A-Za-z0-9._-]*)?"
_GGUF = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,194}\.gguf"
SOURCE_PATTERN = rf"^(hub:{_NAME}/{_NAME}((/{_PART})*/{_GGUF})?|package:{_NAME}(/{_PART})+|path:/.*|ollama:{_OLLAMA})$"
"""What `orchestrator.models.sources` can parse; `schemas.checks` refuses what a pattern cannot say."""


ModelKind = Literal["chat", "embedding", "reranking"]
"""What a model does: answers, vectors of texts, or an order of documents for a query."""


class Model(Frozen):
    """One model, at one revision."""

    source: Annotated[str, StringConstraints(pattern=SOURCE_PATTERN), COLD]
    """Where it comes from: `hub:org/name`, `hub:org/name/file.gguf`, `package:python-package/file.gguf`,
    `package:python-package/directory`, `path:/directory`,
    `path:/file.gguf` (for engines other than `mlx`) or `ollama:name:tag`."""
    revision: Annotated[str | None, StringConstraints(min_length=1, max_length=128), COLD] = None
    """The pinned revision: a commit for `hub:`, the package's version for `package:`."""
    digest: Annotated[str | None, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$"), COLD] = None
    """The SHA-256 of the one file that a `package:` or `hub:` source names; of a directory in a package, of the list of
    its files. Anything else is refused."""
    kind: Annotated[ModelKind, COLD] = "chat"
    """What it does. The kind of a role follows from its models'."""
    memory_gib: Annotated[float | None, Field(gt=0), HOT] = None
    """Memory that a unit serving it needs, in GiB; without it, an estimate may defer a start but refuses no plan."""
    context: Annotated[int | None, Field(ge=16), COLD] = None
    """The longest prompt plus answer, in tokens; the model's own limit when absent. Of embedding and reranking models
    the longest text, or query and document together."""

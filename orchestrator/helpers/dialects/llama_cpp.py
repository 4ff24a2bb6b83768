"""Pure: llama.cpp's `llama-server`. Shapes: ggml-org/llama.cpp `tools/server/README.md` (`GET /props`,
`GET /v1/models`) and `tools/server` (router mode: rows with `status.value` and `aliases`); a server with one model
answers to any name.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.helpers.answers import OPENAI_MODELS, Answers, Dialect, names, openai_models, owners, said
from orchestrator.observed import HelperSeen
from schemas.foreign import count, fields, text

PROPS = "/props"


def _is_spoken(answers: Answers) -> bool:
    props = said(answers, PROPS)
    return "llamacpp" in owners(answers) or {"build_info", "default_generation_settings"} <= props.keys()


def _read(answers: Answers) -> HelperSeen:
    props, served = said(answers, PROPS), openai_models(answers)
    is_router = any("status" in row for row in served)
    loaded = [row for row in served if not is_router or fields(row.get("status")).get("value") == "loaded"]
    sizes = {name: count(fields(row.get("meta")).get("size")) for row in loaded for name in names([row])}
    context = count(fields(props.get("default_generation_settings")).get("n_ctx"))
    return HelperSeen(
        engine="llama.cpp",
        version=text(props.get("build_info")),
        present=_names(served),
        loaded=_names(loaded),
        loaded_bytes={name: size for name, size in sizes.items() if size},
        context={} if context is None or is_router else dict.fromkeys(_names(served), context),
        takes_any_name=len(served) == 1 and not is_router,
    )


def _names(served: list[Mapping[str, object]]) -> frozenset[str]:
    aliases = (alias for row in served if isinstance(given := row.get("aliases"), list) for alias in given)
    return names(served) | {name for alias in aliases if (name := text(alias))}


LLAMA_CPP = Dialect("llama.cpp", (OPENAI_MODELS, PROPS), (PROPS,), _is_spoken, _read)

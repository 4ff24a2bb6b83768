"""Pure: a helper as the files declare it against what was seen: what to pull, what does not fit, a line for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from orchestrator.observed import HelperSeen, HelperSilent
from schemas.base import HelperName
from schemas.ollama_names import full_name, short_name
from schemas.problems import nearest
from schemas.stack import Helper

_SPEAKERS = {
    "ollama": ("ollama",),
    "tei": ("tei",),
    "infinity": ("infinity",),
    "mlx-lm-server": ("mlx_lm.server",),
    "worker": ("orchestrate worker",),
}
"""Which engines speak a declared protocol. OpenAI's is spoken by all of them."""
_TEI_BATCH = 32
"""Texts in one request to TEI, where the files do not say another number: the server's own default."""
_SHOWN = 5


def has_model(seen: HelperSeen, wanted: str) -> bool:
    """Tell whether a helper answers to a model's name; Ollama adds `:latest` and its registry, as `ollama run` does."""
    if seen.engine == "ollama":
        return full_name(wanted) in {full_name(name) for name in seen.present}
    return wanted in seen.present or seen.takes_any_name


def to_pull(helper: Helper, seen: HelperSeen) -> tuple[str, ...]:
    """Return the models that should be there, are not, and can be pulled, by name."""
    if helper.api != "ollama" or seen.engine != "ollama":
        return ()
    wanted = (name for name, model in helper.models.items() if model.ensure == "present")
    return tuple(sorted(name for name in wanted if not has_model(seen, name)))


def mismatches(name: HelperName, helper: Helper, seen: HelperSeen | HelperSilent) -> tuple[str, ...]:
    """Return a sentence for everything in which a helper is not as declared; empty where all is well."""
    if isinstance(seen, HelperSilent):
        return (f"helper {name}: {seen.reason}",)
    found = []
    speakers = _SPEAKERS.get(helper.api)
    if speakers is not None and seen.engine not in speakers:
        found.append(
            f"helpers.{name}.api says {helper.api}, but {program(seen)} answers at {helper.url}; "
            f"write `api: {_api_of(seen)}` or correct the URL"
        )
    elif helper.api == "openai" and seen.engine in _SPEAKERS["mlx-lm-server"]:
        found.append(
            f"helpers.{name}.api says openai, and {program(seen)} answers at {helper.url}: some requests end it; "
            "write `api: mlx-lm-server`, with which each is checked first"
        )
    wanted_batch = helper.max_batch or _TEI_BATCH
    if helper.api == "tei" and seen.max_batch is not None and seen.max_batch < wanted_batch:
        found.append(
            f"helpers.{name}.max_batch is {wanted_batch}, and {program(seen)} takes {seen.max_batch} texts in a "
            f"request; write `max_batch: {seen.max_batch}`"
        )
    if helper.api == "mlx-lm-server":
        return tuple(found)  # it is asked for the model that it was started with, whatever it is called here
    pulled = set(to_pull(helper, seen))
    missing = [model for model in sorted(helper.models) if not has_model(seen, model) and model not in pulled]
    found += [f"helpers.{name}.models: {program(seen)} has no {model!r}{_nearest(seen, model)}" for model in missing]
    return tuple(found)


def program(seen: HelperSeen) -> str:
    """Return a program's name and version."""
    return f"{seen.engine} {seen.version}" if seen.version else seen.engine


def describe(name: HelperName, seen: HelperSeen | HelperSilent) -> str:
    """Return one line about a helper: `rtx: ollama 0.5.7, 3 models, nomic-embed-text loaded`."""
    if isinstance(seen, HelperSilent):
        return f"{name}: {seen.reason}"
    count = len(seen.present)
    parts = [program(seen), f"{count} model{'s' if count != 1 else ''}"]
    if seen.loaded:
        parts.append(f"{_listed(seen.loaded)} loaded")
    return f"{name}: {', '.join(parts)}"


def helper_data(seen: HelperSeen | HelperSilent) -> dict[str, Any]:
    """Return what was seen of a helper as JSON data, with `reachable`."""
    data = {field.name: getattr(seen, field.name) for field in dataclasses.fields(seen)}
    plain = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in data.items()}
    return {"reachable": isinstance(seen, HelperSeen), **plain}


def _api_of(seen: HelperSeen) -> str:
    for api, engines in _SPEAKERS.items():
        if seen.engine in engines:
            return api
    return "openai"


def _nearest(seen: HelperSeen, model: str) -> str:
    if not seen.present:
        return "; it has no models"
    near = nearest(model, seen.present)
    hint = f"; did you mean '{short_name(near)}'?" if near else ""
    return f"; it has: {_listed(seen.present)}{hint}"


def _listed(models: frozenset[str]) -> str:
    shown = sorted(short_name(model) for model in models)
    more = len(shown) - _SHOWN
    return ", ".join(shown[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

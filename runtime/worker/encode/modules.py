"""Pure: the modules that sentence-transformers writes beside a model: pooling, dense layers, normalisation.

Source of the formats: sentence-transformers 5 (`modules.json`, `1_Pooling/config.json`, `2_Dense/config.json`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last"]
Activation = Literal["tanh", "identity"]

_POOLING_KEYS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
"""In the order in which sentence-transformers joins the vectors of several modes."""
_POOLING_NAMES: Mapping[str, PoolingMode] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_ACTIVATIONS: Mapping[str, Activation] = {"Tanh": "tanh", "Identity": "identity"}


class ModelFilesError(Exception):
    """The directory holds no model that this worker can serve as asked; the message says what to do."""


Files = Mapping[str, Any]
"""Parsed JSON files, by their path in the model directory; absent ones are not in it."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer behind the pooling; its weights are in `folder`."""

    folder: str
    activation: Activation


@dataclass(frozen=True, slots=True)
class Modules:
    """What follows the states of the tokens."""

    pooling: tuple[PoolingMode, ...]
    dense: tuple[Dense, ...]
    is_normalised: bool


def module_files(files: Files) -> tuple[str, ...]:
    """Return the paths of further files that `modules.json` names."""
    return tuple(f"{path}/config.json" for _, path in _modules(files) if path)


def names_logit_score(files: Files) -> bool:
    """Tell whether a decoder is a reranker that is read by the logits of its answer."""
    return any(name == "LogitScore" for name, _ in _modules(files))


def read_modules(files: Files) -> Modules | None:
    """Return what `modules.json` names, or None where there is none; raises ModelFilesError."""
    modules = _modules(files)
    if not modules:
        return None
    pooling: tuple[PoolingMode, ...] = ()
    dense: list[Dense] = []
    is_normalised = False
    for name, path in modules:
        match name:
            case "Transformer":
                pass
            case "Pooling":
                pooling = _pooling(files, f"{path}/config.json")
            case "Dense":
                dense.append(_dense(files, path))
            case "Normalize":
                is_normalised = True
            case _:
                raise ModelFilesError(f"modules.json names a module {name}, which this worker cannot compute")
    if not pooling:
        raise ModelFilesError("modules.json names no pooling")
    return Modules(pooling, tuple(dense), is_normalised)


def _modules(files: Files) -> tuple[tuple[str, str], ...]:
    """Return the class name and the folder of every module, in their order."""
    entries = files.get("modules.json")
    if entries is None:
        return ()
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ModelFilesError("modules.json must be a list of modules")
    found = []
    for entry in entries:
        path = str(entry.get("path", ""))
        if path.startswith("/") or ".." in path.split("/"):
            raise ModelFilesError(f"modules.json names a path outside of the model: {path!r}")
        found.append((str(entry.get("type", "")).rsplit(".", 1)[-1], path))
    return tuple(found)


def _pooling(files: Files, where: str) -> tuple[PoolingMode, ...]:
    config = read_object(files, where)
    if config.get("include_prompt") is False:
        raise ModelFilesError(f"{where}:include_prompt is false: pooling without the prompt is not supported")
    named = config.get("pooling_mode")
    if isinstance(named, str):
        if named not in _POOLING_NAMES:
            raise ModelFilesError(f"{where}:pooling_mode is {named!r}; known are {', '.join(_POOLING_NAMES)}")
        return (_POOLING_NAMES[named],)
    modes = tuple(mode for key, mode in _POOLING_KEYS.items() if config.get(key) is True)
    if not modes:
        raise ModelFilesError(f"{where} names no pooling mode")
    return modes


def _dense(files: Files, folder: str) -> Dense:
    where = f"{folder}/config.json"
    name = str(read_object(files, where).get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if name not in _ACTIVATIONS:
        raise ModelFilesError(f"{where}:activation_function is {name}; known are {', '.join(_ACTIVATIONS)}")
    return Dense(folder, _ACTIVATIONS[name])


def read_object(files: Files, path: str) -> Mapping[str, Any]:
    """Return the object that a file holds, empty where there is no such file; raises ModelFilesError."""
    value = files.get(path, {})
    if not isinstance(value, dict):
        raise ModelFilesError(f"{path} must hold an object")
    return value

"""I/O: what a model directory's files say of the model before it is loaded. No weight is read, only where they are."""

from __future__ import annotations

import json
import logging
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.worker.contexts import known_context
from runtime.worker.described import FileCard
from schemas.model import ModelKind

logger = logging.getLogger(__name__)

LARGEST_HEADER = 128 << 20
"""Bytes; safetensors itself refuses more than 100 MB."""
_INDEX = "model.safetensors.index.json"
_ODD = (OSError, ValueError, TypeError, OverflowError, RecursionError, struct.error)
"""What reading a file may raise that somebody has written by hand, or to do harm."""


def read_card(directory: Path, kind: ModelKind = "chat", max_context: int | None = None) -> FileCard:
    """Read `config.json` and the headers of the weights; what cannot be read is left out, nothing is raised.

    Of an encoder the length of a text depends on more than these files.
    """
    try:
        config = _object(directory / "config.json")
    except _ODD:
        return FileCard()
    architecture = config.get("model_type")
    trained = known_context(config) if kind == "chat" else None
    known = FileCard(
        architecture if isinstance(architecture, str) else None,
        trained,
        None if trained is None else min(trained, max_context or trained),
        quantisation=_packing(config),
    )
    try:
        headers = _headers(directory)
        parameters = _parameters(headers or [], config)
    except _ODD as error:
        logger.info("the headers of the weights are not read: %s", error)
        return known
    if headers is None:
        return replace(known, **_totals(directory))
    written_by_mlx = any(_fields(header.get("__metadata__")).get("format") == "mlx" for header in headers)
    return replace(
        known,
        parameters=parameters,
        quantisation=known.quantisation or _usual_type(headers),
        format="mlx" if written_by_mlx else "safetensors",
        size_bytes=sum(_bytes(tensor) for header in headers for tensor in _tensors(header).values()),
    )


def _headers(directory: Path) -> list[Mapping[str, Any]] | None:
    """Return the header of every file of weights; None where some of them are on other machines."""
    index = directory / _INDEX
    if index.is_file():
        named = _fields(_object(index).get("weight_map")).values()
        paths = [directory / name for name in sorted({name for name in named if isinstance(name, str)})]
    else:
        paths = sorted(directory.glob("*.safetensors"))
    if not paths or not all(path.is_file() for path in paths):
        return None
    return [_header(path) for path in paths]


def _header(path: Path) -> Mapping[str, Any]:
    """Return a safetensors header: eight bytes of its length, then JSON (huggingface/safetensors README, "Format")."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > LARGEST_HEADER:
            raise ValueError(f"{path.name}: a header of {size} bytes")
        return _fields(json.loads(file.read(size)))


def _totals(directory: Path) -> dict[str, Any]:
    try:
        said = _fields(_object(directory / _INDEX).get("metadata"))
    except _ODD:
        said = {}
    found = {"parameters": said.get("total_parameters"), "size_bytes": said.get("total_size")}
    return {key: value if isinstance(value, int) and value > 0 else None for key, value in found.items()}


def _parameters(headers: list[Mapping[str, Any]], config: Mapping[str, Any]) -> int | None:
    """Count what the model was trained as: packed weights hold several in each element, beside their scales."""
    tensors = {name: tensor for header in headers for name, tensor in _tensors(header).items()}
    total = 0.0
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        is_packed = tensor.get("dtype") == "U32" and f"{stem}.scales" in tensors
        if is_packed and last == "weight":
            total += _elements(tensor) * 32 / _bits(config, stem)
        elif str(tensor.get("dtype", "")).startswith(("F", "BF")) and not _belongs_to_packed(stem, last, tensors):
            total += _elements(tensor)
    return round(total) or None


def _belongs_to_packed(stem: str, last: str, tensors: Mapping[str, Mapping[str, Any]]) -> bool:
    return last in ("scales", "biases") and tensors.get(f"{stem}.weight", {}).get("dtype") == "U32"


def _bits(config: Mapping[str, Any], stem: str) -> int:
    packing = _fields(config.get("quantization"))
    bits = _fields(packing.get(stem)).get("bits", packing.get("bits"))
    return bits if isinstance(bits, int) and bits > 0 else 4


def _packing(config: Mapping[str, Any]) -> str | None:
    packing = _fields(config.get("quantization"))
    mode, bits = packing.get("mode"), packing.get("bits")
    if isinstance(mode, str) and mode != "affine":
        return mode
    return f"{bits}bit" if isinstance(bits, int) else None


def _usual_type(headers: list[Mapping[str, Any]]) -> str | None:
    sizes: Counter[str] = Counter()
    for header in headers:
        for tensor in _tensors(header).values():
            sizes[str(tensor.get("dtype", "")).lower()] += _elements(tensor)
    return sizes.most_common(1)[0][0] if sizes else None


def _tensors(header: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: tensor for name, tensor in header.items() if name != "__metadata__" and isinstance(tensor, dict)}


def _elements(tensor: Mapping[str, Any]) -> int:
    shape = tensor.get("shape")
    return math.prod(shape) if isinstance(shape, list) and all(isinstance(size, int) for size in shape) else 0


def _bytes(tensor: Mapping[str, Any]) -> int:
    match tensor.get("data_offsets"):
        case [int(first), int(end)]:
            return end - first
        case _:
            return 0


def _object(path: Path) -> Mapping[str, Any]:
    return _fields(json.loads(path.read_text(encoding="utf-8")))


def _fields(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}

"""I/O: write an MLX model directory from a GGUF file: `python -m runtime.worker.convert --gguf FILE --out DIR`.

Quantised matrices stay as they are: GGUF's Q4_0, Q4_1 and Q8_0 blocks are MLX's affine groups of 32, so nothing is
rounded twice. Progress goes to stdout as one JSON object a line; installing DIR atomically is the caller's part.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from runtime.worker import gguf_tokenizer, gguf_weights

VERSION = 1
"""Version of the progress lines; a reader refuses one that it does not know."""

GRAIN = 16
"""Tensors between two progress lines."""

Progress = Callable[[str, int, int], None]
"""Receives phase (`weights`, `tokenizer` or `write`), steps done and steps in all."""


class ConversionError(Exception):
    """The file cannot be converted; the message is for the user."""


def native_precision() -> mx.Dtype:
    """Return the precision this machine computes fast in.

    MLX's CPU backend emulates half precision: SmolLM2-135M gave 0.3 tokens/s in float16 and 8 in float32 on two x86
    cores. A GPU is at home in float16.
    """
    return mx.float32 if mx.default_device().type == mx.DeviceType.cpu else mx.float16


def convert(gguf: Path, out: Path, precision: mx.Dtype, progress: Progress) -> None:
    """Write `out` so that `mlx_lm.load` loads it.

    `out` is created where it is missing and must be empty. `precision` is that of everything which is not quantised:
    norms, scales and biases, and so of the activations.

    Raises ConversionError, or OSError where the disk refuses.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ConversionError(f"{out} is not empty; give a new directory")
    arrays, metadata = _read(gguf)
    try:
        gguf_weights.check_supported(metadata)
        weights = _weights(arrays, gguf_weights.shape(metadata), precision, progress)
        shapes = {name: tuple(array.shape) for name, array in weights.items()}
        progress("tokenizer", 0, 1)
        documents = {
            "tokenizer.json": gguf_tokenizer.tokenizer_json(metadata),
            "tokenizer_config.json": gguf_tokenizer.tokenizer_config(metadata, metadata["llama.context_length"]),
            "generation_config.json": gguf_weights.generation_config(metadata),
            "config.json": gguf_weights.model_config(metadata, shapes),
        }
        progress("tokenizer", 1, 1)
    except (gguf_weights.UnsupportedModelError, gguf_tokenizer.UnsupportedTokenizerError) as error:
        raise ConversionError(f"{gguf.name}: {error}") from error
    except KeyError as error:
        raise ConversionError(f"{gguf.name}: the metadata has no {error.args[0]!r}") from error
    _write(out, weights, documents, progress)


def _read(gguf: Path) -> tuple[dict[str, mx.array], dict[str, Any]]:
    if not gguf.is_file():
        raise ConversionError(f"{gguf} is not a file")
    try:
        loaded = mx.load(str(gguf), format="gguf", return_metadata=True)
    except (RuntimeError, ValueError) as error:
        raise ConversionError(f"{gguf.name} cannot be read as GGUF: {error}") from error
    # `mx.load` is typed as the union of all its formats; with these arguments it returns a pair of dictionaries.
    arrays, metadata = cast("tuple[dict[str, mx.array], dict[str, Any]]", loaded)
    plain = {key: value.tolist() if isinstance(value, mx.array) else value for key, value in metadata.items()}
    return arrays, plain


def _weights(
    arrays: dict[str, mx.array], shape: gguf_weights.Shape, precision: mx.Dtype, progress: Progress
) -> dict[str, mx.array]:
    """Rename every tensor, undo the row order of q and k, and bring what is not packed to one precision."""
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}
    weights: dict[str, mx.array] = {}
    for done, (name, array) in enumerate(arrays.items()):
        target = gguf_weights.mlx_name(name)
        count = heads.get(target.split(".")[-2])
        plain = array if array.dtype == mx.uint32 else array.astype(precision)
        weights[target] = _half_rotated(plain, count)
        mx.eval(weights[target])
        if done % GRAIN == 0:
            progress("weights", done, len(arrays))
    progress("weights", len(arrays), len(arrays))
    return weights


def _half_rotated(array: mx.array, heads: int | None) -> mx.array:
    """Undo GGUF's row order: it interleaves the two halves of each head that MLX's rope keeps apart."""
    if heads is None:
        return array
    rest = array.shape[1:]
    return array.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(array.shape)


def _write(out: Path, weights: dict[str, mx.array], documents: dict[str, dict[str, Any]], progress: Progress) -> None:
    total = len(documents) + 1
    progress("write", 0, total)
    try:
        mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    except RuntimeError as error:
        raise ConversionError(f"writing {out / 'model.safetensors'} failed: {error}") from error
    for done, (name, content) in enumerate(documents.items(), start=1):
        progress("write", done, total)
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    progress("write", total, total)


def _emit(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"version": VERSION, "event": event, **fields}) + "\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run the conversion; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m runtime.worker.convert", description="GGUF to MLX directory")
    parser.add_argument("--gguf", type=Path, required=True, help="the file to read")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty directory")
    parser.add_argument(
        "--precision",
        choices=["float16", "float32"],
        help="of what is not quantised (default: what this machine computes fast in)",
    )
    arguments = parser.parse_args(argv)
    precision = getattr(mx, arguments.precision) if arguments.precision else native_precision()

    def progress(phase: str, done: int, total: int) -> None:
        _emit("progress", phase=phase, done=done, total=total)

    try:
        convert(arguments.gguf, arguments.out, precision, progress)
    except (ConversionError, OSError) as error:
        _emit("error", message=str(error))
        return 1
    _emit("done", out=str(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())

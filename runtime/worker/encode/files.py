"""I/O: read the small files of a model directory; nothing is downloaded and no code of the model is run."""

import json
from pathlib import Path
from typing import Any

from runtime.worker.encode.modules import Files, ModelFilesError, module_files
from runtime.worker.encode.recipe import CONFIG_FILES

PROJECTOR_FILE = "projector.safetensors"


def read_files(directory: Path) -> Files:
    """Return the parsed JSON files that say how the model is computed, by their paths; raises ModelFilesError."""
    if not (directory / "config.json").is_file():
        raise ModelFilesError(f"{directory} is not a model directory: it has no config.json")
    files = _parse(directory, CONFIG_FILES)
    return files | _parse(directory, module_files(files))


def load_tokenizer(directory: Path) -> Any:
    """Return the model's tokenizer, of the `tokenizers` library; it neither cuts nor pads. Raises ModelFilesError."""
    tokenizer = _read_tokenizer(directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_tokenizer(directory: Path) -> Any:
    path = directory / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare exceptions
            raise ModelFilesError(f"{path} cannot be read: {error}") from error
    # Older directories carry a vocabulary only, which transformers knows to convert; it takes seconds to import.
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise ModelFilesError(f"{directory} has no tokenizer that can be read: {error}") from error
    inner = getattr(loaded, "backend_tokenizer", None)
    if inner is None:
        raise ModelFilesError(f"{directory} has no tokenizer.json and its tokenizer has no fast version")
    return inner


def ends_texts(tokenizer: Any) -> bool:
    """Tell whether the tokenizer puts a token of its own behind every text."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    return bool(len(whole) > len(plain) and whole[-1:] != plain[-1:])


def has_projector(directory: Path) -> bool:
    """Tell whether the weights hold jina-reranker-v3's projector, in a file of its own or among the others."""
    if (directory / PROJECTOR_FILE).is_file():
        return True
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return '"projector.' in index.read_text(encoding="utf-8")
    return any(b'"projector.' in _header(path) for path in directory.glob("model*.safetensors"))


def _header(path: Path) -> bytes:
    """Return the part of a safetensors file that names its tensors; empty for a file that is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(length) if length <= 100_000_000 else b""  # safetensors' own limit


def _parse(directory: Path, paths: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for path in paths:
        file = directory / path
        if not file.is_file():
            continue
        try:
            found[path] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelFilesError(f"{file} is not JSON: {error}") from error
    return found

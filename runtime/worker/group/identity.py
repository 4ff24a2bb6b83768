"""I/O: what must be the same on every rank, read cheaply: versions, our own sources, and digests of the model's files.

Small files (configuration, tokenizer, templates) are read whole. A weights file is known by its size, its header (name,
type, shape and place of every tensor) and the first and last MiB of its data: two conversions or revisions of a model
differ there, and a cut-off file does in its size. Damage in the middle is found by `orchestrate models verify`.
"""

import hashlib
from pathlib import Path

from runtime.worker import status
from runtime.worker.group.wire import Identity
from schemas import sharding

EDGE_BYTES = 1 << 20
MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit; a file that is none, as a Git LFS pointer, seems to have a longer one."""
_WHOLE = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "chat_template.json",
    "*.tiktoken",
    "*.safetensors.index.json",
)
_WEIGHTS = "*.safetensors"


def identify(model_dir: Path) -> Identity:
    """Describe this rank; raises OSError where the model cannot be read."""
    files = {path.name: _whole(path) for pattern in _WHOLE for path in model_dir.glob(pattern) if path.is_file()}
    files |= {path.name: _edges(path) for path in model_dir.glob(_WEIGHTS)}
    return Identity(versions=status.versions(), code=_code(), files=files)


def fingerprint(model_dir: Path) -> str:
    """Return one digest for everything that `identify` reads of a model; raises OSError where it cannot be read."""
    state = hashlib.sha256()
    for name, digest in sorted(identify(model_dir).files.items()):
        state.update(f"{name} {digest};".encode())
    return state.hexdigest()


def _whole(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _edges(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        state = hashlib.sha256(str(size).encode())
        length = file.read(8)
        header_bytes = min(int.from_bytes(length, "little"), MAX_HEADER_BYTES)
        state.update(length + file.read(header_bytes) + file.read(EDGE_BYTES))
        file.seek(max(0, size - EDGE_BYTES))
        state.update(file.read())
    return state.hexdigest()


def _code() -> str:
    """Digest the worker's sources: a node that was not provided with the newest must not join."""
    state = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in [*sorted(root.rglob("*.py")), Path(sharding.__file__)]:
        name = path.relative_to(root) if path.is_relative_to(root) else path.name
        state.update(f"{name} {_whole(path)};".encode())
    return state.hexdigest()

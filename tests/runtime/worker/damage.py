"""I/O: a copy of a model that is not what it was, as a bad disk leaves it."""

import random
from pathlib import Path

from runtime.worker.group.identity import EDGE_BYTES

SPAN = 1 << 19


def damage(model_dir: Path) -> None:
    """Make half a MiB in the middle of the weights noise, where ranks do not look when their group forms."""
    path = model_dir / "model.safetensors"
    data = bytearray(path.read_bytes())
    begin = (len(data) - SPAN) // 2 & ~3
    assert begin > EDGE_BYTES + (1 << 16)
    assert len(data) - begin - SPAN > EDGE_BYTES
    noise = random.Random(3).randbytes(SPAN)
    # float32 numbers between 0.5 and 1: wrong, and nothing that shows as an infinity
    data[begin : begin + SPAN] = b"".join(noise[n : n + 2] + b"\x20\x3f" for n in range(0, SPAN, 4))
    path.write_bytes(data)

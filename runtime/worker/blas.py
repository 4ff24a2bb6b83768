"""I/O: how many threads numpy's OpenBLAS multiplies with.

Its threads wait for each other by turning in circles. With one for every core each product waits for whoever else needs
a core: MLX's own threads, other ranks on the machine, other programs. 256 rows times 1,536 x 576 weights beside eight
busy processes on two cores, CPU time and wall time in milliseconds: two threads 116 and 663, one 12 and 86.
"""

import ctypes
import logging
import os
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

_LIBRARIES = "libscipy_openblas64_*.so*"
"""In `numpy.libs` beside numpy, as its wheels for Linux carry it."""
_SET, _GET = "scipy_openblas_set_num_threads64_", "scipy_openblas_get_num_threads64_"


def leave_cores_free() -> None:
    """Let products take half of the cores that this process may use, one at least; a number in the environment counts.

    Where numpy multiplies with another library, nothing changes.
    """
    if "OPENBLAS_NUM_THREADS" in os.environ:
        return
    for path in (Path(np.__file__).parents[1] / "numpy.libs").glob(_LIBRARIES):
        try:
            library = ctypes.CDLL(str(path))
            most = getattr(library, _GET)()
            getattr(library, _SET)(min(most, max(1, len(os.sched_getaffinity(0)) // 2)))
        except (OSError, AttributeError) as error:
            logger.info("numpy multiplies with as many threads as it likes: %s", error)

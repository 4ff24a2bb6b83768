"""I/O: look for an engine's program on its node."""

from __future__ import annotations

from orchestrator.engines.catalogue import install_hint, program_name
from orchestrator.engines.description import EngineError
from orchestrator.transport.base import NodeTransport
from schemas.unit import EngineSpec

FIND_TIMEOUT_S = 30.0
# A command over ssh has a shorter PATH than a terminal: what Homebrew, pipx and `make install` put in place is looked
# for as well.
SCRIPT = """
import os, shutil, sys
places = [os.environ.get("PATH", os.defpath), "/opt/homebrew/bin", "/usr/local/bin", "~/.local/bin", "/snap/bin"]
path = os.pathsep.join(os.path.expanduser(place) for place in places)
found = shutil.which(os.path.expanduser(sys.argv[1]), path=path)
print(os.path.abspath(found) if found else "", end="")
"""


async def find_program(transport: NodeTransport, python: str, spec: EngineSpec, environment: str | None = None) -> str:
    """Return the absolute path of an engine's program on a node.

    `python` is any interpreter of the node, `environment` that of its runtime environment, which carries mlx-lm; by
    default they are the same. Raises EngineError with how to install the program, or TransportError.
    """
    if spec.engine == "mlx-lm-server" and "program" not in spec.args:
        return environment or python
    name = program_name(spec)
    done = await transport.run([python, "-S", "-c", SCRIPT, name], timeout_s=FIND_TIMEOUT_S)
    found = done.stdout.decode("utf-8", "replace")
    if done.exit_code or not found:
        raise EngineError(install_hint(spec, transport.node))
    return found

"""Pure: inference servers of other people that we start and stop: how each is called, and how it says that it serves.

`launch` gives the command of a unit, `probe` asks it for a real token, `find_program` looks for it on its node.
"""

from orchestrator.engines.catalogue import ENGINES, install_hint, launch, model_form, problems, upstream_model
from orchestrator.engines.description import EngineError, Launch

__all__ = ["ENGINES", "EngineError", "Launch", "install_hint", "launch", "model_form", "problems", "upstream_model"]

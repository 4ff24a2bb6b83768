"""I/O: what computes in a process that has the whole model."""

from runtime.worker.compute import Compute
from runtime.worker.generation import MakeSteps
from runtime.worker.model import LoadedModel
from runtime.worker.prompt_cache import PromptCache
from runtime.worker.settings import Settings
from runtime.worker.steps import Steps


def computing_alone(settings: Settings) -> MakeSteps:
    """Return what makes the computation once the model is loaded, on the generation thread."""

    def make(model: LoadedModel, limit: int) -> Steps:
        return Compute(model, limit, kept=PromptCache(settings.prompt_cache_bytes))

    return make

"""I/O: what computes in a process that has the whole model."""

from pathlib import Path

from runtime.worker.compute import Compute
from runtime.worker.generation import MakeSteps
from runtime.worker.model import LoadedModel, load
from runtime.worker.prompt_cache import open_prompt_cache
from runtime.worker.settings import Settings
from runtime.worker.speculation import Speculation
from runtime.worker.steps import Steps


def computing_alone(settings: Settings) -> MakeSteps:
    """Return what makes the computation once the model is loaded, on the generation thread."""

    def make(model: LoadedModel) -> Steps:
        batch = Compute(model, kept=open_prompt_cache(settings))
        if settings.draft_dir is None:
            return batch
        draft = load(Path(settings.draft_dir), None, lambda _: None)
        return Speculation(batch, draft, settings.draft_tokens)

    return make

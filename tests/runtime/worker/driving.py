"""I/O: drives a computation step by step, and notes what it gives."""

import random
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from runtime.worker.model import LoadedModel
from runtime.worker.request import Sampling
from runtime.worker.steps import Commands, Insert, Step, Steps

GREEDY = Sampling(temperature=0)


@dataclass
class Run:
    """Drives a computation and notes what it gives."""

    compute: Steps
    answers: dict[int, list[int]] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)

    def step(self, *inserts: Insert, removes: tuple[int, ...] = (), size: int = 32) -> Step:
        """Compute one step that reads `size` tokens of each prompt at most."""
        self.open |= {insert.id for insert in inserts}
        self.open -= set(removes)
        step = self.compute.step(Commands(inserts, removes, size))
        assert not step.refused
        self.known |= step.entered
        for token in step.tokens:
            assert token.error is None
            self.answers.setdefault(token.id, []).append(token.token)
            if token.finish is not None:
                self.open.remove(token.id)
        return step

    def finish(self, *inserts: Insert) -> list[list[int]]:
        """Run until all are answered; return the answers to `inserts`."""
        self.step(*inserts)
        while self.open:
            self.step()
        return [self.answers[insert.id] for insert in inserts]


class Passes:
    """A model that notes how many rows and tokens each of its passes computes."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tokens: mx.array, **options: Any) -> mx.array:
        self.shapes.append(tokens.shape)
        found: mx.array = self.module(tokens, **options)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def prompt(model: LoadedModel, length: int, seed: int = 1) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(1, model.limits.vocabulary) for _ in range(length)]


def asking(job_id: int, tokens: list[int], max_tokens: int = 6) -> Insert:
    return Insert(job_id, tokens, max_tokens, GREEDY)

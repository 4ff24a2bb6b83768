"""I/O: the model computes one step for all requests of the batch: the part of the work that every rank of a group does.

Wraps mlx-lm's `BatchGenerator`. It decides nothing: who enters, who leaves and what the tokens mean is decided by
`Batch`, on rank 0 alone, and every rank applies the same commands in the same order.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, StopSequences

from runtime.worker.model import LoadedModel
from runtime.worker.request import Sampling
from runtime.worker.sampling import Chooser, Sampler, make_chooser
from runtime.worker.steps import Commands, Insert, Step, Token

logger = logging.getLogger(__name__)

GPU_PREFILL_TOKENS = 512
CPU_PREFILL_TOKENS = 32
"""Prompt tokens computed in one round, between two tokens of the running requests.

A round cannot be interrupted: long prompts must not freeze the others' streams, nor hold a place whose client has left.
A CPU computes 16 tokens at once no slower a token than 256 (SmolLM2-135M: about 10/s either way); a GPU wants more.
"""


Agreement = Callable[[mx.array], mx.array]
"""Takes the tokens that this rank has chosen, returns those that count."""


@dataclass(slots=True)
class Compute:
    """Owns the generator."""

    model: LoadedModel
    limit: int
    """Requests computed together."""
    new_chooser: Callable[[Sampling, int, int], Chooser] = make_chooser
    agree: Agreement | None = None
    """Makes the ranks of a group go on with the same tokens; none in a process that is alone."""
    _uids: dict[int, int] = field(default_factory=dict)
    """The generator's uids, keyed by id."""
    _choosers: dict[int, tuple[int, Chooser]] = field(default_factory=dict)
    """Ids and choosers, keyed by the generator's uid."""
    _generator: Any = field(init=False)
    """A `BatchGenerator`, whose methods carry no types."""
    _stop_sequences: StopSequences = field(init=False)

    def __post_init__(self) -> None:
        self._stop_sequences = StopSequences([(token,) for token in self.model.end_tokens])
        self._generator = self._new_generator()

    @property
    def kv_bytes(self) -> int:
        """Return the size of the requests' caches."""
        return int(self._generator.prompt_cache_nbytes)

    def step(self, commands: Commands) -> Step:
        """Take out who leaves, take in who enters and compute one step; raises what the model raises."""
        if commands.removes:
            self._remove(commands.removes)
        refused = [insert.id for insert in commands.inserts if not self._insert(insert)]
        _, responses = self._generator.next()
        tokens = [self._token(response) for response in responses]
        if not self._uids:
            mx.clear_cache()
        return Step(tokens, refused)

    def recover(self) -> None:
        """Forget all requests."""
        self._uids.clear()
        self._choosers.clear()
        self._generator.close()
        self._generator = self._new_generator()
        mx.clear_cache()

    def close(self) -> None:
        """Give the generator's resources back."""
        self._generator.close()

    def _insert(self, insert: Insert) -> bool:
        try:
            chooser = self.new_chooser(insert.sampling, self.model.limits.vocabulary, len(insert.tokens))
            if insert.constraint is not None:
                # Behind all others: what the grammar forbids, nothing may allow again.
                chooser.add(self.model.grammars.constraint(insert.constraint))
            (uid,) = self._generator.insert(
                [insert.tokens],
                max_tokens=[insert.max_tokens],
                samplers=[self._agreed(chooser.sampler)],
                logits_processors=[chooser.processors],
                stop_sequences=[self._stop_sequences],
            )
        except Exception:
            logger.exception("a request could not enter the batch")
            return False
        self._uids[insert.id] = uid
        self._choosers[uid] = insert.id, chooser
        return True

    def _remove(self, ids: Sequence[int]) -> None:
        uids = [self._uids.pop(job_id) for job_id in ids if job_id in self._uids]
        for uid in uids:
            del self._choosers[uid]
        self._generator.remove(uids)

    def _token(self, response: Any) -> Token:
        job_id, chooser = self._choosers[response.uid]
        if response.finish_reason is not None:
            del self._choosers[response.uid]
            del self._uids[job_id]
        return Token(job_id, response.token, response.finish_reason, chooser.error)

    def _agreed(self, sampler: Sampler | None) -> Sampler | None:
        agree = self.agree
        if agree is None or sampler is None:
            return sampler
        return lambda logprobs: agree(sampler(logprobs))

    def _new_generator(self) -> Any:
        is_on_cpu = mx.default_device().type == mx.DeviceType.cpu
        return BatchGenerator(
            self.model.module,
            # Rows without a sampler of their own are greedy, and chosen in one call.
            sampler=self._agreed(_most_probable) if self.agree else None,
            completion_batch_size=self.limit,
            prefill_batch_size=self.limit,
            prefill_step_size=CPU_PREFILL_TOKENS if is_on_cpu else GPU_PREFILL_TOKENS,
        )


def _most_probable(logprobs: mx.array) -> mx.array:
    return mx.argmax(logprobs, axis=-1)

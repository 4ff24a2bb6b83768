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
from mlx_lm.models.cache import KVCache, make_prompt_cache

from runtime.worker import prefill
from runtime.worker.model import LoadedModel
from runtime.worker.prompt_cache import Caches, PromptCache
from runtime.worker.recorder import Recorder
from runtime.worker.request import Sampling
from runtime.worker.sampling import Chooser, make_chooser
from runtime.worker.steps import WARM_UP_ID, Commands, Gauges, Insert, Step, Token

logger = logging.getLogger(__name__)

SETTLE_STEPS = 64
"""Steps between two looks at how much the running requests have grown; the prompt cache makes room for them."""

Agreement = Callable[[mx.array], mx.array]
"""Takes the tokens that this rank has chosen, returns those that count."""


@dataclass(slots=True)
class _Row:
    """A request in the batch."""

    insert: Insert
    chooser: Chooser
    recorder: Recorder | None
    known: int
    """Tokens of the prompt that were computed before it entered."""
    end_of_turn: int = 0
    """Tokens of the prompt after which to keep what was computed so far; 0 where there is no such place."""
    has_begun: bool = False
    """Something was computed for it."""


@dataclass(slots=True)
class Compute:
    """Owns the generator."""

    model: LoadedModel
    limit: int
    """Requests computed together."""
    new_chooser: Callable[[Sampling, int, int], Chooser] = make_chooser
    agree: Agreement | None = None
    """Makes the ranks of a group go on with the same tokens; none in a process that is alone."""
    kept: PromptCache = field(default_factory=lambda: PromptCache(0))
    """What is known of prompts before they come."""
    _uids: dict[int, int] = field(default_factory=dict)
    """The generator's uids, keyed by id."""
    _rows: dict[int, _Row] = field(default_factory=dict)
    """Keyed by the generator's uid."""
    _sharing: dict[int, list[Insert]] = field(default_factory=dict)
    """Who waits for the prompt of another request that is being computed, keyed by the id of that one."""
    _can_shorten: bool = field(init=False)
    """What was computed for a sequence serves any beginning of it, on all ranks of a group."""
    _steps: int = 0
    _generator: Any = field(init=False)
    """A `BatchGenerator`, whose methods carry no types."""
    _stop_sequences: StopSequences = field(init=False)

    def __post_init__(self) -> None:
        self._stop_sequences = StopSequences([(token,) for token in self.model.end_tokens])
        self._generator = self._new_generator()
        layers: Any = make_prompt_cache(self.model.module)
        self._can_shorten = all(type(layer) is KVCache for layer in layers)

    @property
    def gauges(self) -> Gauges:
        """Return what is held in this process, and what was counted."""
        kept = self.kept
        return Gauges(
            kv_bytes=self._running_bytes,
            kept_bytes=kept.kept_bytes,
            kept_limit=kept.limit_bytes,
            kept=kept.kept,
            lookups=kept.lookups,
            hits=kept.hits,
            cached_tokens=kept.cached_tokens,
        )

    def step(self, commands: Commands) -> Step:
        """Take out who leaves, take in who enters and compute one step; raises what the model raises."""
        # Collectives of two streams would run at once, over the same connections: all work is the batch's stream's.
        with mx.stream(self.stream):
            return self._step(commands)

    def _step(self, commands: Commands) -> Step:
        if not self._steps:
            # A pipeline's ranks have other layers each; what they keep must not depend on that.
            (is_fixed,) = self.kept.agree([not self._can_shorten])
            self._can_shorten = not is_fixed
        orphans = self._remove(commands.removes) if commands.removes else []
        step = Step([], [])
        for insert in [*orphans, *commands.inserts]:
            if insert.shares in self._sharing and insert.shares != insert.id:
                self._sharing[insert.shares].append(insert)
            else:
                self._enter(insert, step)
        self._generator.prefill_step_size = commands.prefill_tokens
        prompts, responses = self._generator.next()
        self._agree()
        step.tokens.extend(self._token(response) for response in responses)
        for prompt in prompts:
            self._rows[prompt.uid].has_begun = True
            if prompt.end_of_segment and not prompt.end_of_prompt:
                self._note_prompt(prompt, step)
        self._steps += 1
        if self._steps % SETTLE_STEPS == 0:
            self.kept.make_room(self._running_bytes)
        if not self._uids:
            mx.clear_cache()
        return step

    def recover(self) -> None:
        """Forget all requests."""
        self._uids.clear()
        self._rows.clear()
        self._sharing.clear()
        self.kept.clear()
        self._generator.close()
        self._generator = self._new_generator()
        mx.clear_cache()

    def close(self) -> None:
        """Give the generator's resources back."""
        self._generator.close()

    @property
    def is_busy(self) -> bool:
        """Tell whether there are requests in the batch."""
        return bool(self._uids)

    @property
    def stream(self) -> Any:
        """Return where the batch is computed."""
        return self._generator.stream

    def take_over(self, insert: Insert, caches: Caches, known: int, chooser: Chooser) -> bool:
        """Go on with a request that was begun elsewhere: its tokens are those so far, its chooser is in the middle.

        Return whether it could enter.
        """
        step = Step([], [])
        self._enter(insert, step, caches, known, chooser)
        return not step.refused

    @property
    def _running_bytes(self) -> int:
        return int(self._generator.prompt_cache_nbytes)

    def _enter(
        self,
        insert: Insert,
        step: Step,
        caches: Caches | None = None,
        known: int = 0,
        chooser: Chooser | None = None,
    ) -> None:
        """Put a request into the batch, with `caches` of the first `known` tokens of its prompt, or what is kept."""
        tokens = insert.tokens
        try:
            if chooser is None:
                chooser = self.new_chooser(insert.sampling, self.model.limits.vocabulary, len(tokens))
            if insert.constraint is not None:
                # Behind all others: what the grammar forbids, nothing may allow again.
                chooser.add(self.model.grammars.constraint(insert.constraint))
            recorder = None if insert.logprobs is None else Recorder(insert.logprobs)
            if recorder is not None:
                chooser.add_first(recorder)
            if caches is None and insert.id != WARM_UP_ID:
                caches, known = self.kept.find(tokens)
            end_of_turn = self._end_of_turn(tokens)
            cut = max(known, end_of_turn)
            (uid,) = self._generator.insert_segments(
                [[tokens[known:cut], tokens[cut:]]],
                max_tokens=[insert.max_tokens],
                caches=[caches],
                all_tokens=[tokens[:known]],
                samplers=[chooser.sampler],
                logits_processors=[chooser.processors],
                stop_sequences=[self._stop_sequences],
            )
        except Exception:
            logger.exception("a request could not enter the batch")
            step.refused.append(insert.id)
            return
        self._uids[insert.id] = uid
        self._rows[uid] = _Row(insert, chooser, recorder, known, end_of_turn)
        step.entered[insert.id] = known
        if insert.shares == insert.id and len(tokens) - known > 1:
            self._sharing[insert.id] = []

    def _end_of_turn(self, tokens: list[int]) -> int:
        """Return how many tokens reach to the end of the last complete turn, where that place matters; else 0.

        The next turn's prompt may tell the answer otherwise than it was given, without its reasoning for one. Caches
        that cannot be shortened serve it only if they were kept before the answer began.
        """
        if self._can_shorten or not self.kept.limit_bytes:
            return 0
        ends = (index for index in range(len(tokens) - 1, 0, -1) if tokens[index - 1] in self.model.end_tokens)
        return next(ends, 0)

    def _remove(self, ids: Sequence[int]) -> list[Insert]:
        """Take requests out and keep what was computed for them; return who waited for a prompt of theirs."""
        leaving = set(ids)
        for waiting in self._sharing.values():
            waiting[:] = [insert for insert in waiting if insert.id not in leaving]
        uids = [self._uids.pop(job_id) for job_id in ids if job_id in self._uids]
        for uid in uids:
            row = self._rows.pop(uid)
            if row.has_begun:
                self._keep(uid)
        self._generator.remove(uids)
        return [insert for job_id in ids for insert in self._sharing.pop(job_id, [])]

    def _note_prompt(self, prompt: Any, step: Step) -> None:
        """Note that a part of a prompt is computed: keep it, and let those enter who share it."""
        row = self._rows[prompt.uid]
        insert = row.insert
        read = row.known + prompt.progress[0]
        if read == row.end_of_turn:
            self._keep(prompt.uid)
        if read == len(insert.tokens) - 1 and insert.id in self._sharing:
            waiting = self._sharing.pop(insert.id)
            # Also for those who share it and find no place yet.
            caches = self._keep(prompt.uid)
            for other in waiting:
                self._enter(other, step, caches, read)

    def _keep(self, uid: int) -> Caches:
        caches, tokens = self._generator.extract_cache([uid])[uid]
        self.kept.keep(tokens, caches, self._running_bytes)
        return list(caches)

    def _token(self, response: Any) -> Token:
        row = self._rows[response.uid]
        chooser, logprobs = row.chooser, None
        try:
            logprobs = row.recorder.take(response.token) if row.recorder else None
        except Exception as error:  # noqa: BLE001 - the fence around one request
            chooser.error = chooser.error or error
        if response.finish_reason is not None:
            del self._rows[response.uid]
            del self._uids[row.insert.id]
            if row.insert.id != WARM_UP_ID:
                self.kept.keep(response.all_tokens, response.prompt_cache, self._running_bytes)
        return Token(row.insert.id, response.token, response.finish_reason, chooser.error, logprobs)

    def _agree(self) -> None:
        """Let the tokens chosen last, which the next step goes on with, be those that all ranks go on with.

        Once for all rows, and begun now: it is over when the next step begins.
        """
        chosen = self._generator._generation_batch
        if self.agree is not None and len(chosen):
            chosen._next_tokens = self.agree(chosen._next_tokens)
            mx.async_eval(chosen._next_tokens)  # type: ignore[no-untyped-call]

    def _new_generator(self) -> Any:
        return BatchGenerator(
            self.model.module,
            completion_batch_size=self.limit,
            prefill_batch_size=self.limit,
            # Each step says how many; what it says is never cut further.
            prefill_step_size=max(prefill.CPU.most, prefill.GPU.most),
        )


def prefill_bounds() -> prefill.Bounds:
    """Return how much of a prompt is computed at once on this device."""
    return prefill.CPU if mx.default_device().type == mx.DeviceType.cpu else prefill.GPU

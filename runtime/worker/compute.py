"""I/O: the model computes one step for all requests of the batch: the part of the work that every rank of a group does.

It decides nothing: who enters, who leaves and what the tokens mean is decided by `Batch`, on rank 0 alone, and every
rank applies the same commands in the same order.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import maybe_set_recommended_wired_limit

from runtime.worker import prefill
from runtime.worker.model import LoadedModel
from runtime.worker.prompt_cache import Caches, PromptCache
from runtime.worker.recorder import Recorder
from runtime.worker.request import Sampling
from runtime.worker.sampling import Chooser, make_chooser
from runtime.worker.sequences import Agreement, Line, Sequences, Told
from runtime.worker.steps import WARM_UP_ID, Commands, Gauges, Insert, Step, Token

logger = logging.getLogger(__name__)

SETTLE_STEPS = 64
"""Steps between two looks at how much the running requests have grown; the prompt cache makes room for them."""


@dataclass(slots=True)
class _Row:
    """A request in the batch."""

    insert: Insert
    line: Line
    recorder: Recorder | None
    known: int
    """Tokens of the prompt that were computed before it entered."""


@dataclass(slots=True)
class Compute:
    """Owns the sequences."""

    model: LoadedModel
    new_chooser: Callable[[Sampling, int, int], Chooser] = make_chooser
    agree: Agreement | None = None
    """Makes the ranks of a group go on with the same tokens; none in a process that is alone."""
    kept: PromptCache = field(default_factory=lambda: PromptCache(0))
    """What is known of prompts before they come."""
    looks_ahead: bool = field(default_factory=lambda: not _is_cpu())
    """The next step is begun before the tokens of the last one are read; in a group, from the first step on, where all
    ranks would."""
    _rows: dict[int, _Row] = field(default_factory=dict)
    """Keyed by id."""
    _sharing: dict[int, list[Insert]] = field(default_factory=dict)
    """Who waits for the prompt of another request that is being computed, keyed by the id of that one."""
    _can_shorten: bool = field(init=False)
    """What was computed for a sequence serves any beginning of it, on all ranks of a group."""
    _steps: int = 0
    _sequences: Sequences = field(init=False)
    _wired_before: int | None = field(init=False)
    """The limit of memory that is not swapped, before it was raised; none where the device has no such limit."""

    def __post_init__(self) -> None:
        self._wired_before = maybe_set_recommended_wired_limit()
        self._sequences = self._new_sequences()
        layers: Any = make_prompt_cache(self.model.module)
        self._can_shorten = all(type(layer) is KVCache for layer in layers)

    @property
    def gauges(self) -> Gauges:
        """Return what is held in this process, and what was counted."""
        kept = self.kept
        return Gauges(
            kv_bytes=self._sequences.nbytes,
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
            # A pipeline's ranks have other layers each; what they keep must not depend on that. Nor may the order of
            # their collectives depend on the device that each has.
            is_fixed, waits = self.kept.agree([not self._can_shorten, not self.looks_ahead])
            self._can_shorten = not is_fixed
            self.looks_ahead = self._sequences.looks_ahead = not waits
        orphans = self._remove(commands.removes) if commands.removes else []
        step = Step([], [])
        for insert in [*orphans, *commands.inserts]:
            if insert.shares in self._sharing and insert.shares != insert.id:
                self._sharing[insert.shares].append(insert)
            else:
                self._enter(insert, step)
        sequences, size = self._sequences, commands.prefill_tokens
        sequences.begin(size, lambda line: self._alike(line, step))
        for line in sequences.read(size):
            if line.done in line.pauses:
                self._keep(line)
        step.tokens.extend(self._token(told) for told in sequences.go_on())
        self._steps += 1
        if self._steps % SETTLE_STEPS == 0:
            self.kept.make_room(sequences.nbytes)
        if not self._rows:
            mx.clear_cache()
        return step

    def recover(self) -> None:
        """Forget all requests."""
        self._rows.clear()
        self._sharing.clear()
        self.kept.clear()
        self._sequences = self._new_sequences()
        mx.clear_cache()

    def close(self) -> None:
        """Give the device's memory back."""
        if self._wired_before is not None:
            mx.synchronize(self.stream)
            mx.set_wired_limit(self._wired_before)
            self._wired_before = None

    @property
    def is_busy(self) -> bool:
        """Tell whether there are requests in the batch."""
        return bool(self._rows)

    @property
    def stream(self) -> Any:
        """Return where the batch is computed."""
        return generation_stream

    def take_over(self, insert: Insert, caches: Caches, known: int, chooser: Chooser) -> bool:
        """Go on with a request that was begun elsewhere: its tokens are those so far, its chooser is in the middle.

        Return whether it could enter.
        """
        step = Step([], [])
        self._enter(insert, step, caches, known, chooser)
        return not step.refused

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
            row = self._row(insert, chooser)
            if caches is None and insert.id != WARM_UP_ID:
                caches, known = self.kept.find(tokens)
            row.known = row.line.done = known
            row.line.pauses = self._pauses(insert)
            self._sequences.add(row.line, caches)
        except Exception:
            logger.exception("a request could not enter the batch")
            step.refused.append(insert.id)
            return
        self._rows[insert.id] = row
        step.entered[insert.id] = known
        if insert.shares == insert.id:
            self._sharing[insert.id] = []

    def _row(self, insert: Insert, chooser: Chooser | None = None) -> _Row:
        """Return a request of which nothing is computed; raises whatever its sampling or its grammar raise."""
        tokens = insert.tokens
        if chooser is None:
            chooser = self.new_chooser(insert.sampling, self.model.limits.vocabulary, len(tokens))
        if insert.constraint is not None:
            # Behind all others: what the grammar forbids, nothing may allow again.
            chooser.add(self.model.grammars.constraint(insert.constraint))
        recorder = None if insert.logprobs is None else Recorder(insert.logprobs)
        if recorder is not None:
            chooser.add_first(recorder)
        return _Row(insert, Line(insert.id, list(tokens), insert.max_tokens, chooser), recorder, 0)

    def _alike(self, line: Line, step: Step) -> list[Line]:
        """Let those enter who wait for the prompt that is done; return their lines."""
        insert = self._rows[line.id].insert
        waiting = self._sharing.pop(insert.id, None)
        if waiting is None:
            return []
        if self._can_shorten:
            # For those who share it and find no place yet.
            self._keep(line)
        lines = []
        for other in waiting:
            try:
                row = self._row(other)
            except Exception:
                logger.exception("a request could not enter the batch")
                step.refused.append(other.id)
                continue
            # The last token is computed, if not for this one: the model needs one at least to answer.
            row.known, row.line.done = line.done - 1, line.done
            step.entered[other.id] = row.known
            self._rows[other.id] = row
            lines.append(row.line)
        return lines

    def _pauses(self, insert: Insert) -> frozenset[int]:
        """Return after how many tokens of a prompt to keep what was computed, where the end of the answer is too late.

        Caches that cannot be shortened serve only what goes on where they were kept. The next turn's prompt may tell
        the answer otherwise than it was given, without its reasoning for one, and goes on behind the last complete
        turn. Others who share the prompt go on before its last token.
        """
        if self._can_shorten or not self.kept.limit_bytes:
            return frozenset()
        tokens, ends = insert.tokens, self.model.end_tokens
        places = {next((index for index in range(len(tokens) - 1, 0, -1) if tokens[index - 1] in ends), 0)}
        if insert.shares == insert.id:
            places.add(len(tokens) - 1)
        return frozenset(places - {0})

    def _remove(self, ids: Sequence[int]) -> list[Insert]:
        """Take requests out and keep what was computed for them; return who waited for a prompt of theirs."""
        leaving = set(ids)
        for waiting in self._sharing.values():
            waiting[:] = [insert for insert in waiting if insert.id not in leaving]
        rows = [self._rows.pop(job_id) for job_id in ids if job_id in self._rows]
        for row in rows:
            if row.line.done > row.known:
                self._keep(row.line)
        self._sequences.remove([row.line for row in rows])
        return [insert for job_id in ids for insert in self._sharing.pop(job_id, [])]

    def _keep(self, line: Line) -> None:
        caches = self._sequences.extract(line) if self.kept.limit_bytes else None
        if caches is not None:
            self.kept.keep(line.tokens[: line.done], caches, self._sequences.nbytes)

    def _token(self, told: Told) -> Token:
        line = told.line
        row = self._rows[line.id]
        chooser, logprobs = line.chooser, None
        try:
            logprobs = row.recorder.take(told.token) if row.recorder else None
        except Exception as error:  # noqa: BLE001 - the fence around one request
            chooser.error = chooser.error or error
        if told.finish is not None:
            del self._rows[line.id]
            if line.id != WARM_UP_ID and told.caches is not None:
                self.kept.keep(line.tokens[: line.done], told.caches, self._sequences.nbytes)
        return Token(line.id, told.token, told.finish, chooser.error, logprobs)

    def _new_sequences(self) -> Sequences:
        return Sequences(self.model.module, self.model.end_tokens, self.looks_ahead, self.agree)


def _is_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


def prefill_bounds() -> prefill.Bounds:
    """Return how much of a prompt is computed at once on this device."""
    return prefill.CPU if _is_cpu() else prefill.GPU

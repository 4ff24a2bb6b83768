"""I/O: a draft model proposes tokens, and the model checks several of them at once: the `Steps` of a lone request.

Every token of the answer is the model's own choice: row by row the model chooses, with the random numbers that it would
have used without a draft, and a proposal counts only where it is that choice. So answers are distributed as they are
without a draft; with the same seed they are the same texts, but for the rounding of a computation over several tokens
at once. The draft chooses with the same random numbers as the model, so that it guesses right more often.

Batches are computed without a draft: where several requests share each step, its memory traffic is shared already. The
lone request goes on in the batch as soon as another one comes, and for good when the draft model fails.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache, trim_prompt_cache

from runtime.worker.compute import SETTLE_STEPS, Compute
from runtime.worker.model import LoadedModel
from runtime.worker.prefill import TAIL
from runtime.worker.prompt_cache import MODEL, Caches
from runtime.worker.sampling import Chooser
from runtime.worker.steps import WARM_UP_ID, Commands, Gauges, Insert, Step, Token

logger = logging.getLogger(__name__)

_DRAFT = "draft"
"""Under this name the draft's caches are kept."""


class DraftError(Exception):
    """The draft model does not go with the model."""


class _DraftFailedError(Exception):
    """The draft model raised; the cause is what it raised."""


def check_draft(model: LoadedModel, draft: LoadedModel) -> None:
    """Refuse a draft that cannot propose tokens to `model`; raises DraftError."""
    ours, theirs = model.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    other = next((token for token, index in theirs.items() if ours.get(token) != index), None)
    if other is not None:
        message = f"the draft model has another vocabulary: its token {other!r} is not the model's"
        raise DraftError(f"{message}; choose a smaller model of the same family, or none")
    for name, loaded in (("model", model), ("draft model", draft)):
        layers: Any = make_prompt_cache(loaded.module)
        other = next((type(layer).__name__ for layer in layers if type(layer) is not KVCache), None)
        if other is not None:
            message = f"the {name} keeps a {other}, from which a wrong guess cannot be taken back"
            raise DraftError(f"{message}; serve the model without a draft")


@contextmanager
def _blaming_the_draft() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _DraftFailedError from error


@dataclass(slots=True)
class _Sequence:
    """What one of the two models has computed of the request."""

    module: Any
    caches: Caches
    done: int
    """Tokens in the caches."""

    @property
    def nbytes(self) -> int:
        """Return the size of the caches."""
        return sum(cache.nbytes for cache in self.caches)

    def read(self, tokens: list[int], until: int, most: int) -> bool:
        """Compute at most `most` of the tokens up to `until`; tell whether all of them are done."""
        part = tokens[self.done : min(until, self.done + most)]
        if part:
            self.module(mx.array(part)[None], cache=self.caches)
            mx.eval([cache.state for cache in self.caches])
            self.done += len(part)
        return self.done >= until

    def rows(self, tokens: mx.array, count: int) -> mx.array:
        """Compute tokens; return the log probabilities after the last `count` of them, one row each."""
        logits: mx.array = self.module(tokens[None], cache=self.caches)[0, -count:, :]
        self.done += tokens.size
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def forget(self, length: int) -> None:
        """Take back what was computed behind the first `length` tokens."""
        if self.done > length:
            trim_prompt_cache(self.caches, self.done - length)
            self.done = length


@dataclass(slots=True)
class _Lone:
    """The request that has the computation for itself."""

    insert: Insert
    chooser: Chooser
    tokens: list[int]
    """Of prompt and answer."""
    own: _Sequence
    drafted: _Sequence
    steps: int = 0
    """Computed for it."""
    has_failed: bool = False

    @property
    def left(self) -> int:
        """Return how many tokens may still come."""
        return len(self.insert.tokens) + self.insert.max_tokens - len(self.tokens)


@dataclass(slots=True)
class Speculation:
    """Owns the lone request; everything else is the business of `batch`."""

    batch: Compute
    draft: LoadedModel | None
    """None once it has failed."""
    draft_tokens: int
    """Proposed for one step."""
    _failure: str | None = None
    """Why there is no draft any more."""
    _lone: _Lone | None = None
    _drafted: int = 0
    _accepted: int = 0

    def __post_init__(self) -> None:
        if self.draft is not None:
            check_draft(self.batch.model, self.draft)

    @property
    def gauges(self) -> Gauges:
        """Return what is held, and what was counted."""
        gauges = self.batch.gauges
        return replace(
            gauges,
            kv_bytes=gauges.kv_bytes + self._lone_bytes,
            draft_bytes=0 if self.draft is None else self.draft.size_bytes,
            draft_failure=self._failure,
            drafted=self._drafted,
            accepted=self._accepted,
        )

    def step(self, commands: Commands) -> Step:
        """Compute one step; raises what the models raise."""
        lone = self._lone
        if lone is not None and lone.insert.id in commands.removes:
            self._leave(lone)
            lone = None
        if lone is None and not self.batch.is_busy and len(commands.inserts) == 1:
            lone = self._begin(commands.inserts[0])
            if lone is not None:
                return Step([], [], {lone.insert.id: lone.own.done}, has_computed=False)
        elif lone is not None and not commands.inserts:
            try:
                with mx.stream(self.batch.stream):
                    return Step(self._compute(lone, commands.prefill_tokens), [])
            except _DraftFailedError as error:
                self.draft, self._failure = None, repr(error.__cause__)
                logger.exception("the draft model failed and is not used any more")
        refused = [] if lone is None or self._hand_over(lone) else [lone.insert.id]
        step = self.batch.step(commands)
        step.refused.extend(refused)
        return step

    def recover(self) -> None:
        """Forget all requests."""
        self._lone = None
        self.batch.recover()

    def close(self) -> None:
        """Give the resources back."""
        self.batch.close()

    @property
    def _lone_bytes(self) -> int:
        lone = self._lone
        return 0 if lone is None else lone.own.nbytes + lone.drafted.nbytes

    def _begin(self, insert: Insert) -> _Lone | None:
        """Take a request for itself, unless what it asks for needs every token before the next one is chosen."""
        draft = self.draft
        if draft is None or insert.logprobs is not None or insert.constraint is not None:
            return None
        try:
            chooser = self.batch.new_chooser(insert.sampling, self.batch.model.limits.vocabulary, len(insert.tokens))
        except Exception:  # noqa: BLE001 - the batch finds the same, and refuses the request
            return None
        if chooser.processors or not chooser.looks_ahead:
            return None
        tokens = list(insert.tokens)
        own, drafted = self._sequence(self.batch.model, insert, MODEL), self._sequence(draft, insert, _DRAFT)
        self._lone = _Lone(insert, chooser, tokens, own, drafted)
        return self._lone

    def _sequence(self, model: LoadedModel, insert: Insert, name: str) -> _Sequence:
        is_looked_up = insert.id != WARM_UP_ID
        caches, known = self.batch.kept.find(insert.tokens, name) if is_looked_up else (None, 0)
        fresh: Any = make_prompt_cache(model.module) if caches is None else caches
        return _Sequence(model.module, fresh, known)

    def _compute(self, lone: _Lone, most: int) -> list[Token]:
        if lone.has_failed:
            return []
        until = len(lone.insert.tokens) - 1
        # The two read the prompt side by side; the draft may know less of it.
        was_reading = min(lone.own.done, lone.drafted.done) < until
        # The end of a prompt that is known but for it is one pass with the first guesses.
        is_short = len(lone.tokens) - lone.own.done <= min(most, TAIL) - self.draft_tokens
        is_read = is_short or lone.own.read(lone.tokens, until, most)
        with _blaming_the_draft():
            is_read &= lone.drafted.read(lone.tokens, until, most)
        lone.steps += 1
        if lone.steps % SETTLE_STEPS == 0 or (was_reading and is_read):
            self.batch.kept.make_room(self.gauges.kv_bytes)
        if not is_read:
            mx.clear_cache()
            return []
        try:
            chosen = self._choose(lone)
        except Exception as error:
            if lone.chooser.error is None or isinstance(error, _DraftFailedError):
                raise
            lone.has_failed = True
            logger.debug("a lone request failed", exc_info=error)
            return [Token(lone.insert.id, 0, None, lone.chooser.error)]
        return self._emit(lone, chosen)

    def _choose(self, lone: _Lone) -> list[int]:
        """Return the model's next tokens: as many as were guessed right, and one more."""
        tokens, length = lone.tokens, len(lone.tokens)
        count = min(self.draft_tokens, lone.left - 1)
        guesses: list[mx.array] = []
        feed = mx.array(tokens[lone.drafted.done :])
        for ahead in range(count):
            with _blaming_the_draft():
                row = self._as_wide(lone.drafted.rows(feed, 1))
            feed = lone.chooser.choose_ahead(row, ahead)
            guesses.append(feed)
        try:
            # What numpy multiplies is computed at once, and the guesses with it.
            rows = lone.own.rows(mx.concatenate([mx.array(tokens[lone.own.done :]), *guesses]), count + 1)
            choices = [lone.chooser.choose_ahead(rows[ahead : ahead + 1], ahead) for ahead in range(count + 1)]
            mx.eval(choices, guesses)
        except Exception:
            # What the model has computed is of no use with guesses that cannot be computed.
            lone.own = _Sequence(lone.own.module, make_prompt_cache(lone.own.module), 0)
            with _blaming_the_draft():
                mx.eval(guesses)
            raise
        proposed: Any = [each.item() for each in guesses]
        chosen: Any = [each.item() for each in choices]
        right = 0
        while right < count and chosen[right] == proposed[right]:
            right += 1
        lone.own.forget(length + right)
        lone.drafted.forget(length + right)
        lone.chooser.advance(right + 1)
        if lone.insert.id != WARM_UP_ID:
            self._drafted += count
            self._accepted += right
        return list(chosen[: right + 1])

    def _as_wide(self, row: mx.array) -> mx.array:
        """Give the draft's row the model's width: vocabularies are padded to different lengths."""
        width = self.batch.model.limits.vocabulary
        if row.shape[-1] < width:
            return mx.pad(row, [(0, 0), (0, width - row.shape[-1])], constant_values=-mx.inf)
        return row[:, :width]

    def _emit(self, lone: _Lone, chosen: list[int]) -> list[Token]:
        emitted = []
        for token in chosen:
            lone.tokens.append(token)
            finish = "length" if lone.left == 0 else None
            if token in self.batch.model.end_tokens:
                finish = "stop"
            emitted.append(Token(lone.insert.id, token, finish))
            if finish is not None:
                self._leave(lone)
                break
        return emitted

    def _leave(self, lone: _Lone) -> None:
        """End the lone request; keep what was computed for it."""
        self._lone = None
        lone.own.forget(len(lone.tokens))
        lone.drafted.forget(len(lone.tokens))
        running = self.batch.gauges.kv_bytes
        self._keep(lone, lone.own, running, MODEL)
        self._keep(lone, lone.drafted, running, _DRAFT)
        mx.clear_cache()

    def _keep(self, lone: _Lone, sequence: _Sequence, running_bytes: int, name: str) -> None:
        if lone.insert.id != WARM_UP_ID:
            self.batch.kept.keep(lone.tokens[: sequence.done], sequence.caches, running_bytes, name)

    def _hand_over(self, lone: _Lone) -> bool:
        """Let the lone request go on in the batch; tell whether it could."""
        self._lone = None
        lone.own.forget(len(lone.tokens) - 1)
        if self.draft is not None:
            self._keep(lone, lone.drafted, self.batch.gauges.kv_bytes + lone.own.nbytes, _DRAFT)
        rest = replace(lone.insert, tokens=lone.tokens, max_tokens=lone.left, shares=None)
        return self.batch.take_over(rest, lone.own.caches, lone.own.done, lone.chooser)

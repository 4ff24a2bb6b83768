"""I/O: build what chooses one request's tokens, from mlx-lm's parts; a request without a seed draws one."""

import secrets
from collections import deque
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_frequency_penalty,
    make_logits_processors,
    make_presence_penalty,
    make_repetition_penalty,
)

from runtime.worker.request import Sampling

Sampler = Callable[[mx.array], mx.array]
"""Takes log-probabilities (rows x vocabulary), returns one token a row."""
Processor = Callable[[mx.array, mx.array], mx.array]
"""Takes the tokens so far, prompt included, and the logits of one row; returns the logits."""

LEAST_TEMPERATURE = 1e-5
"""Below this the most probable token is taken: the difference is below what 32-bit numbers can divide by."""
_WHOLE_CONTEXT = 1 << 30
"""`context_size` of mlx-lm's penalties that no context reaches: they count every token, not the last 20."""


class KeyedSampler:
    """Draws tokens with random numbers of its own, so other requests in the batch cannot change them."""

    def __init__(self, temperature: float, filters: list[Sampler], seed: int) -> None:
        """`filters` are applied to the log-probabilities in turn, before the temperature."""
        self._inverse = 1.0 / temperature
        self._filters = filters
        self._key = mx.random.key(seed)
        self._draws: deque[mx.array] = deque()
        """Keys of the draws to come that were looked at."""

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Draw one token for each row."""
        token = self.look(logprobs, 0)
        self.advance(1)
        return token

    def look(self, logprobs: mx.array, ahead: int) -> mx.array:
        """Return what the draw after the next `ahead` ones would give; draw nothing."""
        while len(self._draws) <= ahead:
            self._key, draw = mx.random.split(self._key)
            self._draws.append(draw)
        for narrow in self._filters:
            logprobs = narrow(logprobs)
        return mx.random.categorical(logprobs * self._inverse, key=self._draws[ahead])

    def advance(self, count: int) -> None:
        """Count the next `count` draws, which were looked at, as done."""
        for _ in range(count):
            self._draws.popleft()


class Chooser:
    """One request's sampler and processors, fenced: what they raise is kept in `error` and ends that request alone.

    The batch calls them in the middle of a step that serves other requests too. After an error the row goes on with
    any token at all, since the request is taken out after the step.
    """

    def __init__(self, sampler: Sampler | None, processors: list[Processor]) -> None:
        """`sampler` none asks the batch for greedy choice, which it computes for all such rows at once."""
        self.error: Exception | None = None
        self.sampler = self._fenced_sampler(sampler) if sampler else None
        self._keyed = sampler if isinstance(sampler, KeyedSampler) else None
        self.looks_ahead = sampler is None or self._keyed is not None
        """It can tell what it would choose some tokens later."""
        self.processors = [self._fenced_processor(processor) for processor in processors]

    def add(self, processor: Processor) -> None:
        """Add a processor behind the others."""
        self.processors.append(self._fenced_processor(processor))

    def add_first(self, processor: Processor) -> None:
        """Add a processor in front of the others."""
        self.processors.insert(0, self._fenced_processor(processor))

    def choose_ahead(self, logprobs: mx.array, ahead: int) -> mx.array:
        """Return what is chosen from one row after the next `ahead` tokens; raises what it keeps in `error`."""
        try:
            return mx.argmax(logprobs, axis=-1) if self._keyed is None else self._keyed.look(logprobs, ahead)
        except Exception as error:
            self.error = error
            raise

    def advance(self, count: int) -> None:
        """Go on by `count` tokens that were chosen ahead."""
        if self._keyed is not None:
            self._keyed.advance(count)

    def _fenced_sampler(self, sampler: Sampler) -> Sampler:
        def choose(logprobs: mx.array) -> mx.array:
            try:
                return sampler(logprobs)
            except Exception as error:  # noqa: BLE001 - the fence
                self.error = error
                return mx.argmax(logprobs, axis=-1)

        return choose

    def _fenced_processor(self, processor: Processor) -> Processor:
        def process(tokens: mx.array, logits: mx.array) -> mx.array:
            try:
                return processor(tokens, logits)
            except Exception as error:  # noqa: BLE001 - the fence
                self.error = error
                return logits

        return process


def make_chooser(sampling: Sampling, vocabulary: int, prompt_length: int) -> Chooser:
    """Build what chooses a request's tokens; `vocabulary` is the number of tokens that the model chooses from."""
    is_greedy = sampling.temperature < LEAST_TEMPERATURE or sampling.top_p == 0
    sampler = None if is_greedy else _sampler(sampling, vocabulary)
    return Chooser(sampler, _processors(sampling, prompt_length))


def _sampler(sampling: Sampling, vocabulary: int) -> Sampler:
    filters: list[Sampler] = []
    if sampling.top_p < 1:
        filters.append(lambda logprobs: apply_top_p(logprobs, sampling.top_p))
    if sampling.min_p > 0:
        filters.append(lambda logprobs: apply_min_p(logprobs, sampling.min_p))
    if 0 < sampling.top_k < vocabulary:
        filters.append(lambda logprobs: apply_top_k(logprobs, sampling.top_k))
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    return KeyedSampler(sampling.temperature, filters, seed % (1 << 64))


def _processors(sampling: Sampling, prompt_length: int) -> list[Processor]:
    """Build the penalties: repetition over prompt and answer, frequency and presence over the answer alone.

    A bias comes behind them, so that one of 100 or -100 decides.
    """
    processors: list[Processor] = []
    if sampling.repetition_penalty != 1:
        processors.append(make_repetition_penalty(sampling.repetition_penalty, _WHOLE_CONTEXT))
    if sampling.presence_penalty:
        processors.append(_on_answer(make_presence_penalty(sampling.presence_penalty, _WHOLE_CONTEXT), prompt_length))
    if sampling.frequency_penalty:
        processors.append(_on_answer(make_frequency_penalty(sampling.frequency_penalty, _WHOLE_CONTEXT), prompt_length))
    if sampling.logit_bias:
        processors.extend(make_logits_processors(dict(sampling.logit_bias)))
    return processors


def _on_answer(processor: Processor, prompt_length: int) -> Processor:
    return lambda tokens, logits: processor(tokens[prompt_length:], logits)

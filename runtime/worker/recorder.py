"""I/O: note what the model thought of its tokens, before anything that a request asks for changes it."""

from collections import deque

import mlx.core as mx
import numpy as np

from runtime.worker.steps import TokenLogprobs

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI's API tells the same number."""


class Recorder:
    """One request's log probabilities. The first of its logits processors, so it sees the model's own logits.

    The batch may compute one token ahead: a row that was seen in one step belongs to the token that the next one gives.
    """

    def __init__(self, alternatives: int) -> None:
        """`alternatives` is how many of the most probable tokens are told with each token."""
        self._alternatives = alternatives
        self._rows: deque[mx.array] = deque()

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        """Note a row of logits; return it as it was."""
        exact = logits[0].astype(mx.float32)
        row = exact - mx.logsumexp(exact)
        # Begun now, with the step: reading it later would wait for the step after it.
        mx.async_eval(row)  # type: ignore[no-untyped-call]
        self._rows.append(row)
        return logits

    def take(self, token: int) -> TokenLogprobs:
        """Return what the model thought where it chose `token`."""
        row = np.array(self._rows.popleft(), copy=False)
        count = min(self._alternatives, row.size)
        best = np.argpartition(-row, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
        top = sorted(((int(each), _finite(row[each])) for each in best), key=lambda pair: (-pair[1], pair[0]))
        return TokenLogprobs(_finite(row[token]), tuple(top))


def _finite(value: np.float32) -> float:
    return max(LEAST_LOGPROB, float(value)) if np.isfinite(value) else LEAST_LOGPROB

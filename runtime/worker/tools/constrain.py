"""I/O: constrained decoding with llguidance: a compiled grammar masks what one request's next token may be.

Every rank compiles the grammar itself and feeds it the tokens that count for the group, so all ranks mask alike.
llguidance's limits count work, not time: what one rank refuses, every rank refuses.
"""

import itertools
import re
import threading
from collections import OrderedDict
from typing import Any

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from runtime.worker.tools.lark import MAX_GRAMMAR_BYTES

KEPT_GRAMMARS = 32
"""Compiled grammars that are kept: clients ask with the same schema again and again."""
_TRIAL_TOKENS = 4
_PLACE = re.compile(r"at \d+\(\d+\): (?:failed to compile JSON schema: )?")
_DUMP = re.compile(r"<|\s*\d+ \| ")
_UNSATISFIABLE = "nothing satisfies it"
_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""A state takes one or two kilobytes, and usual schemas need some thousands."""


class GrammarError(Exception):
    """A grammar cannot be compiled, or no text obeys it; the message is llguidance's reason."""


class Grammars:
    """Compiles grammars for one model's vocabulary; safe from any thread."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_tokens: frozenset[int]) -> None:
        """`tokenizer` is mlx-lm's wrapper; `vocabulary` the number of tokens that the model chooses from."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._lock = threading.Lock()
        self._words: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def special_tokens(self) -> dict[str, int]:
        """Return the ids of the tokens that no ordinary text of a grammar can produce, keyed by their text.

        Raises GrammarError.
        """
        with self._lock:
            words = self._vocabulary_trie()
            added = self._tokenizer.added_tokens_decoder
            return {str(token): index for index, token in added.items() if words.is_special_token(index)}

    def check(self, grammar: str) -> None:
        """Compile a grammar, to be used soon; raises GrammarError."""
        self._matcher(grammar)

    def constraint(self, grammar: str) -> "Constraint":
        """Return a logits processor for one answer; raises GrammarError."""
        return Constraint(self._matcher(grammar).deep_copy(), self._end_tokens)

    def _matcher(self, grammar: str) -> LLMatcher:
        if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
            raise GrammarError(f"it is larger than {MAX_GRAMMAR_BYTES} bytes")
        with self._lock:
            words = self._vocabulary_trie()
            matcher = self._compiled.pop(grammar, None)
        # Compiled without the lock: the generation thread fetches others meanwhile.
        matcher = matcher or self._compile(words, grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        return matcher

    def _compile(self, words: LLTokenizer, grammar: str) -> LLMatcher:
        matcher = LLMatcher(words, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarError(_reason(matcher.get_error()))
        # The first masks belong to the check: some grammars are found too large, or empty, only then.
        trial = matcher.deep_copy()
        for _ in range(_TRIAL_TOKENS):
            bits = np.unpackbits(np.frombuffer(trial.compute_bitmask(), np.uint8), bitorder="little")
            if trial.is_error():
                raise GrammarError(_reason(trial.get_error()))
            if not bits.any():
                raise GrammarError(_UNSATISFIABLE)
            token = int(bits.argmax())
            if token in self._end_tokens:
                break
            trial.consume_token(token)
        return matcher

    def _vocabulary_trie(self) -> LLTokenizer:
        if self._words is None:
            # Takes about a second for the largest vocabularies, so only once it is asked for.
            from llguidance.hf import from_tokenizer

            size = max(self._vocabulary, len(self._tokenizer))
            try:
                inner = self._tokenizer._tokenizer
                self._words = from_tokenizer(inner, n_vocab=size, eos_token=sorted(self._end_tokens))
            except Exception as error:
                raise GrammarError(f"this model's tokenizer cannot be constrained ({error})") from error
        return self._words


class Constraint:
    """Masks one row's logits; owned by the generation thread."""

    def __init__(self, matcher: LLMatcher, end_tokens: frozenset[int]) -> None:
        """`matcher` stands at the beginning of the answer and belongs to this row alone."""
        self._matcher = matcher
        self._end_tokens = end_tokens
        self._has_begun = False
        self._has_ended = False

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Take the tokens so far and the next one's logits of one row; forbid what the grammar forbids.

        Called once a step. The batch may look one token ahead: the call after the end token changes nothing, since the
        token chosen from it is never used.

        Raises RuntimeError where the last token breaks the grammar, or the grammar becomes too complex.
        """
        if self._has_begun:
            # The model computes the next logits while the mask is computed here. The token is fetched first: what is
            # asked for behind the logits comes behind them.
            last: Any = tokens[-1]
            mx.async_eval(last)  # type: ignore[no-untyped-call]
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
            self._consume(last.item())
        self._has_begun = True
        if self._has_ended:
            return logits
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar failed: {_reason(self._matcher.get_error())}")
        return mx.where(_allowed(mask, logits.shape[-1]), logits, mx.array(-mx.inf, logits.dtype))

    def _consume(self, token: int) -> None:
        if self._has_ended:
            return
        self._has_ended = token in self._end_tokens
        if not self._has_ended and not self._matcher.consume_token(token):
            raise RuntimeError(f"token {token} breaks the grammar: {_reason(self._matcher.get_error())}")


def _allowed(mask: bytes, size: int) -> mx.array:
    """Return one boolean a token, for the first `size` tokens."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
    if len(bits) < size:
        bits = np.pad(bits, (0, size - len(bits)))
    return mx.array(bits[:size].astype(np.bool_))


def _reason(error: str) -> str:
    """Return llguidance's reason, without the parser's state and the copy of the grammar that follow it."""
    lines = itertools.takewhile(lambda line: not _DUMP.match(line), error.splitlines())
    reason = _PLACE.sub("", "\n".join(lines)).strip()
    return _UNSATISFIABLE if reason.startswith("NoExtension") else reason

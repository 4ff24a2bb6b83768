"""I/O: the model reads the prompts of several sequences by portions, and goes on with all of them token by token.

On mlx-lm's models and their caches, without its `BatchGenerator`: that one computes the last token of a prompt in a
pass of its own, tells a token only when the next one is begun, and computes one more behind the last. Here the last few
tokens of a prompt are one pass with the first one of the answer, and nothing is computed behind the last token that is
allowed. On a CPU nothing is computed before it is needed: what MLX (0.32) is given there to compute beside Python makes
Python wait all the same, for all but its last ten operations.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import TokenBuffer, make_prompt_cache

from runtime.worker.prefill import portion
from runtime.worker.products import unread
from runtime.worker.prompt_cache import Caches
from runtime.worker.sampling import Chooser

MOST_ROWS = 256
"""Rows of logits in one pass, of all prompts that end in it: each is as long as the vocabulary."""
CLEAR_STEPS = 512
"""Steps between two times that MLX gives memory back which it has no use for; mlx-lm's own number."""

Agreement = Callable[[mx.array], mx.array]
"""Takes the tokens that this rank has chosen, returns those that count."""


@dataclass(slots=True, eq=False)
class Line:
    """One sequence."""

    id: int
    tokens: list[int]
    """Of the prompt, and of the answer as far as it was told."""
    left: int
    """Tokens that may still come."""
    chooser: Chooser
    done: int = 0
    """Tokens in its caches."""
    pauses: frozenset[int] = frozenset()
    """Numbers of tokens at which a portion of the prompt ends, so that what is known then can be kept."""
    context: TokenBuffer | None = None
    """What its processors see, from the first token of the answer on."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a round gave one line."""

    line: Line
    token: int
    finish: str | None
    caches: Caches | None = None
    """Of a line that has ended: what was computed of its first `done` tokens."""


@dataclass(slots=True)
class _Together:
    """Lines and their caches, merged in the same order."""

    lines: list[Line] = field(default_factory=list)
    caches: Caches = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Return the size of the caches."""
        return sum(cache.nbytes for cache in self.caches)

    def join(self, other: "_Together") -> None:
        """Take the lines of others behind these; the others have none any more."""
        if not self.lines:
            self.caches = other.caches
        elif other.lines:
            for cache, more in zip(self.caches, other.caches, strict=True):
                cache.extend(more)
        self.lines += other.lines
        other.lines, other.caches = [], []

    def pick(self, places: list[int]) -> None:
        """Be the lines at these places; a line that is picked twice is there twice."""
        if places == list(range(len(self.lines))):
            return
        self.lines = [self.lines[place] for place in places]
        if not places:
            self.caches = []
        for cache in self.caches:
            cache.filter(places)

    def split(self, places: list[int]) -> "_Together":
        """Give the lines at these places away."""
        if len(places) == len(self.lines):
            given = _Together(self.lines, self.caches)
            self.lines, self.caches = [], []
            return given
        given = _Together(list(self.lines), copy.deepcopy(self.caches) if places else [])
        given.pick(places)
        if places:
            self.pick([place for place in range(len(self.lines)) if place not in places])
        return given

    def extract(self, place: int) -> Caches:
        """Return the caches of one line, for its own."""
        return [cache.extract(place) for cache in self.caches]

    def forward(self, module: Any, parts: Sequence[list[int]], least: int = 1) -> mx.array:
        """Compute the next tokens of each line; return the logits behind them, row by row, padded at the end.

        `least` is how long rows are made at least.
        """
        lengths = [len(part) for part in parts]
        padding = [max(least, *lengths) - length for length in lengths]
        tokens = mx.array([part + [0] * pad for part, pad in zip(parts, padding, strict=True)])
        if any(padding):
            for cache in self.caches:
                cache.prepare(lengths=lengths, right_padding=padding)
        logits: mx.array = module(tokens, cache=self.caches)
        if any(padding):
            mx.eval([cache.state for cache in self.caches])
            for cache in self.caches:
                cache.finalize()
        for line, length in zip(self.lines, lengths, strict=True):
            line.done += length
        return logits


@dataclass(slots=True)
class Sequences:
    """Owns the lines and their caches. A round is `begin`, then `read`, then `go_on`."""

    module: Any
    end_tokens: frozenset[int]
    looks_ahead: bool
    """The next step is begun before the tokens of the last one are read: a GPU computes while Python works."""
    agree: Agreement | None = None
    """Makes the ranks of a group go on with the same tokens; none in a process that is alone."""
    _entering: list[tuple[Line, Caches]] = field(default_factory=list)
    _reading: _Together = field(default_factory=_Together)
    _begun: _Together = field(default_factory=_Together)
    """Lines whose first token was computed in this round."""
    _answering: _Together = field(default_factory=_Together)
    _chosen: mx.array | None = None
    """The newest token of each line that is answering; looking ahead, nobody has read it."""
    _first: mx.array | None = None
    """The token of each line that has begun."""
    _steps: int = 0

    @property
    def nbytes(self) -> int:
        """Return the size of the caches."""
        entering: int = sum(cache.nbytes for _, caches in self._entering for cache in caches)
        return entering + self._reading.nbytes + self._begun.nbytes + self._answering.nbytes

    def add(self, line: Line, caches: Caches | None) -> None:
        """Take a line in, with the caches of its first `done` tokens; at least one token of its prompt is left."""
        if line.done >= len(line.tokens) or line.left <= 0:
            raise ValueError(f"nothing to compute: {line.done} of {len(line.tokens)} tokens, {line.left} to come")
        fresh: Any = make_prompt_cache(self.module) if caches is None else caches
        self._entering.append((line, fresh))

    def remove(self, lines: Sequence[Line]) -> None:
        """Take lines out, wherever they are; one that is not there is no mistake."""
        self._entering = [(line, caches) for line, caches in self._entering if line not in lines]
        self._reading.pick([place for place, line in enumerate(self._reading.lines) if line not in lines])
        self._stay([place for place, line in enumerate(self._answering.lines) if line not in lines])

    def extract(self, line: Line) -> Caches | None:
        """Return a copy of what was computed for a line's first `done` tokens."""
        for group in (self._reading, self._begun, self._answering):
            if line in group.lines:
                return group.extract(group.lines.index(line))
        return None

    def begin(self, size: int, sharing: Callable[[Line], Sequence[Line]]) -> None:
        """Compute what is left of the prompts that end within this round, and the first token of their answers.

        `sharing` is called with each line whose prompt is done, before its answer begins; the lines that it returns
        have the same prompt, and begin from what was computed for that one.
        """
        self._enter()
        lines = self._reading.lines
        left = [len(line.tokens) - line.done for line in lines]
        ending = [place for place, line in enumerate(lines) if _part(line, size) == left[place]]
        if len(ending) * max((left[place] for place in ending), default=0) > MOST_ROWS:
            # The others are read but for their last tokens, and end with the next round.
            ending = [place for place in ending if left[place] == 1]
        if not ending:
            return
        group = self._begun = self._reading.split(ending)
        parts = [line.tokens[line.done :] for line in group.lines]
        logits = group.forward(self.module, parts)
        logits = logits[mx.arange(len(parts)), mx.array([len(part) - 1 for part in parts])]
        lines, places = [], []
        for place, line in enumerate(list(group.lines)):
            alike = [line, *sharing(line)]
            lines += alike
            places += [place] * len(alike)
        if len(places) > len(parts):
            group.pick(places)
            logits = logits[mx.array(places)]
            group.lines = lines
        self._first = self._choose(lines, None, logits)

    def read(self, size: int) -> list[Line]:
        """Compute the next portion of the other prompts, `size` tokens of each at most; return their lines."""
        group = self._reading
        if group.lines:
            # Without their last tokens, which come with the answer.
            parts = [line.tokens[:-1][line.done : line.done + _part(line, size)] for line in group.lines]
            with unread():
                # A pass of one token turns a window's cache round, and mlx-lm (0.32) masks a longer one behind it
                # wrongly: it hides the first token of who has fewer than the window.
                group.forward(self.module, parts, least=2)
            mx.eval([cache.state for cache in group.caches])
            mx.clear_cache()
        return list(group.lines)

    def go_on(self) -> list[Told]:
        """Compute one more token for each line that is answering; return those that are told in this round."""
        group = self._answering
        if not self.looks_ahead:
            self._advance()
        if self._first is not None:
            self._chosen = self._first if self._chosen is None else mx.concatenate([self._chosen, self._first])
            self._first = None
            group.join(self._begun)
        lines, chosen = list(group.lines), self._chosen
        if chosen is None:
            return []
        ended: dict[Line, Caches] = {}
        if self.looks_ahead:
            ended = {line: group.extract(place) for place, line in enumerate(lines) if line.left == 1}
            self._stay([place for place, line in enumerate(lines) if line not in ended])
            self._advance()
        tokens: Any = chosen.tolist()
        told = [self._tell(line, token, ended) for line, token in zip(lines, tokens, strict=True)]
        over = {each.line for each in told if each.finish is not None}
        self._stay([place for place, line in enumerate(group.lines) if line not in over])
        return told

    def _tell(self, line: Line, token: int, ended: dict[Line, Caches]) -> Told:
        line.tokens.append(token)
        line.left -= 1
        finish = "stop" if token in self.end_tokens else "length" if line.left == 0 else None
        if finish is None:
            return Told(line, token, None)
        return Told(line, token, finish, ended[line] if line in ended else self.extract(line))

    def _enter(self) -> None:
        if self._entering:
            lines = [line for line, _ in self._entering]
            layers = zip(*(caches for _, caches in self._entering), strict=True)
            self._reading.join(_Together(lines, [layer[0].merge(list(layer)) for layer in layers]))
            self._entering.clear()

    def _stay(self, places: list[int]) -> None:
        """Let all but the lines at these places leave those that are answering."""
        if self._chosen is not None and len(places) < len(self._answering.lines):
            self._chosen = self._chosen[mx.array(places)] if places else None
            self._answering.pick(places)

    def _advance(self) -> None:
        """Compute one token for each line that is answering."""
        group = self._answering
        if self._chosen is None:
            return
        logits = self.module(self._chosen[:, None], cache=group.caches)[:, -1, :]
        for line in group.lines:
            line.done += 1
        self._chosen = self._choose(group.lines, self._chosen, logits)
        self._steps += 1
        if self._steps % CLEAR_STEPS == 0:
            mx.clear_cache()

    def _choose(self, lines: Sequence[Line], last: mx.array | None, logits: mx.array) -> mx.array:
        """Choose a token of each row of logits, behind the `last` tokens; none where the prompts end there."""
        contexts = []
        rows = [logits[place : place + 1] for place in range(len(lines))]
        for place, line in enumerate(lines):
            if not line.chooser.processors:
                continue
            if line.context is None or last is None:
                line.context = TokenBuffer(line.tokens)  # type: ignore[no-untyped-call]
                context: Any = line.context.tokens
            else:
                context = line.context.update_and_fetch(last[place : place + 1])  # type: ignore[no-untyped-call]
            contexts.append(context)
            for processor in line.chooser.processors:
                rows[place] = processor(context, rows[place])
        if contexts:
            logits = mx.concatenate(rows)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        samplers = [line.chooser.sampler for line in lines]
        if any(samplers):
            each = [
                mx.argmax(logprobs[place : place + 1], axis=-1) if draw is None else draw(logprobs[place : place + 1])
                for place, draw in enumerate(samplers)
            ]
            chosen = mx.concatenate(each)
        else:
            chosen = mx.argmax(logprobs, axis=-1)
        if self.agree is not None:
            chosen = self.agree(chosen)
        mx.async_eval(chosen, contexts)  # type: ignore[no-untyped-call]
        return chosen


def _part(line: Line, size: int) -> int:
    """Return how many tokens of a prompt the next round computes."""
    count = portion(len(line.tokens) - line.done, size)
    return min([count, *(pause - line.done for pause in line.pauses if pause > line.done)])

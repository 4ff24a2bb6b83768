"""I/O: random answers that obey a grammar, without a model: what any model at all could be made to write."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import load
from tokenizers import AddedToken, Tokenizer

from runtime.worker.tools.constrain import Grammars


class Walker:
    """Chooses tokens at random among those that a grammar allows."""

    def __init__(self, directory: Path, marks: Sequence[str] = (), *, are_special: bool = False) -> None:
        """`marks` become tokens of their own, as models have them; special ones no ordinary text can produce."""
        if marks:
            words = Tokenizer.from_file(str(directory / "tokenizer.json"))
            tokens = [AddedToken(mark, special=are_special, normalized=False) for mark in marks]
            words.add_special_tokens(tokens) if are_special else words.add_tokens(tokens)
            words.save(str(directory / "tokenizer.json"))
        self.tokenizer: Any = load(directory)
        self.size = len(self.tokenizer)
        self.end_tokens = frozenset(self.tokenizer.eos_token_ids)
        self.grammars = Grammars(self.tokenizer, self.size, self.end_tokens)
        ending = [*'"}],<|', "Ċ", *marks]  # Ċ is how byte-level vocabularies spell the end of a line
        self._closing = {self.tokenizer.convert_tokens_to_ids(text) for text in ending} | self.end_tokens

    def follows(self, grammar: str, text: str) -> bool:
        """Tell whether a grammar allows an answer."""
        constraint = self.grammars.constraint(grammar)
        tokens = [0]
        ids: Any = self.tokenizer.encode(text, add_special_tokens=False)
        for token in [*ids, min(self.end_tokens)]:
            values: Any = constraint(mx.array(tokens), mx.zeros((1, self.size)))[0].tolist()
            if values[token] != 0:
                return False
            tokens.append(token)
        return True

    def walk(self, grammar: str, seed: int, most: int = 600) -> str | None:
        """Return the text of one answer, or None where it found no end.

        The longer it gets the likelier it takes the token that ends something, so most walks end.
        """
        dice = random.Random(seed)
        constraint = self.grammars.constraint(grammar)
        tokens = [0]
        for step in range(most):
            allowed = constraint(mx.array(tokens), mx.zeros((1, self.size)))[0]
            values: Any = allowed.tolist()
            choices = [index for index, value in enumerate(values) if value == 0]
            ending = [token for token in choices if token in self._closing]
            token = dice.choice(ending if ending and dice.random() < step / 200 else choices)
            if token in self.end_tokens:
                return str(self.tokenizer.decode(tokens[1:]))
            tokens.append(token)
        return None

"""I/O: keep the key-value caches of prompts and answers, so that a conversation's next turn computes only what is new.

Wraps mlx-lm's `LRUPromptCache`. All ranks of a group do the same here in the same order, and what is thrown out depends
only on sizes that they have agreed on: so all of them find the same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    KVCache,
    LRUPromptCache,
    PromptTrie,
    PromptTrieResult,
    can_trim_prompt_cache,
    trim_prompt_cache,
)

from runtime.worker.cache_size import default_bytes
from runtime.worker.settings import Settings

Caches = list[Any]
"""What mlx-lm keeps of one sequence, one object a layer."""
AgreeOnSizes = Callable[[Sequence[int]], list[int]]
"""Takes sizes in bytes on this rank, returns for each the largest on any rank."""

MOST_ENTRIES = 4096
"""Far above what bytes allow of real conversations; bounds the work of a look at the cache."""
_ENTRY = "__value__"
"""Under this key mlx-lm's trie has an entry among the tokens that go on from it."""
MODEL = "model"
"""Under this name the caches of the main model are kept."""


def open_prompt_cache(settings: Settings, agree: AgreeOnSizes = list) -> "PromptCache":
    """Return the cache that a worker's settings, or else its model's `config.json`, ask for."""
    limit = settings.prompt_cache_bytes
    if limit is None:
        config = json.loads((Path(settings.model_dir) / "config.json").read_bytes())
        ranks = settings.group.size if settings.group else 1
        limit = default_bytes(config, settings.max_batch, settings.max_context, ranks)
    return PromptCache(limit, agree)


class _Trie(PromptTrie):
    """Finds a longer entry in linear time.

    mlx-lm 0.32 looks for the shortest one in a time that grows with the square of its length: for one that goes on for
    16,000 tokens 1.1 s, against 0.03 s. Any one serves, since what is too much of it is taken off.
    """

    def search(self, model: Any, tokens: list[int]) -> PromptTrieResult:
        """Return the entries that are nearest to `tokens`, as the method of mlx-lm does."""
        node = self._trie.get(model, {})
        common = shorter = 0
        while common < len(tokens) and tokens[common] in node:
            node = node[tokens[common]]
            common += 1
            if _ENTRY in node:
                shorter = common
        if common and shorter == len(tokens):
            return PromptTrieResult(model, tokens, None, None, 0)
        longer = list(tokens[:common])
        # Every branch ends in an entry.
        while common and _ENTRY not in node:
            token, node = next(iter(node.items()))
            longer.append(token)
        known = tokens[:shorter] if shorter else None
        return PromptTrieResult(model, None, known, longer if common else None, common)


@dataclass(slots=True)
class _Kept:
    """One sequence's caches, under the size that all ranks agree on; looks to mlx-lm like a single layer's cache."""

    caches: Caches
    nbytes: int
    can_trim: bool
    """Tokens can be taken off the end, on all ranks."""

    def is_trimmable(self) -> bool:
        """Tell whether tokens can be taken off the end."""
        return self.can_trim

    def trim(self, count: int) -> int:
        """Take tokens off the end; return how many."""
        removed: Any = trim_prompt_cache(self.caches, count)
        return int(removed)


@dataclass(slots=True)
class PromptCache:
    """Owns what is kept. With a `limit_bytes` of 0 it keeps nothing."""

    limit_bytes: int
    """Of what is kept and of the running requests' caches together."""
    agree: AgreeOnSizes = list
    lookups: int = 0
    hits: int = 0
    cached_tokens: int = 0
    """Of prompts, that needed not be computed."""
    _entries: Any = field(init=False)

    def __post_init__(self) -> None:
        self.clear()

    @property
    def kept_bytes(self) -> int:
        """Return the size of what is kept; in a group, that on the rank where it is largest."""
        return int(self._entries.nbytes)

    @property
    def kept(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def clear(self) -> None:
        """Throw everything out."""
        self._entries = LRUPromptCache(max_size=MOST_ENTRIES)
        self._entries._trie = _Trie()  # type: ignore[no-untyped-call]

    def find(self, tokens: list[int], model: str = MODEL) -> tuple[Caches | None, int]:
        """Return caches of the longest known beginning of a prompt and its length; at least one token is left over.

        The caches are the caller's to change. What is kept for another `model` than the main one is not counted.
        """
        if not self.limit_bytes:
            return None, 0
        found, rest = self._entries.fetch_nearest_cache(model, tokens)
        count = len(tokens) - len(rest)
        if found is not None and not rest:
            # The model needs one token at least to say what comes next.
            if found[0].is_trimmable():
                count -= found[0].trim(1)
            else:
                found, rest = self._entries.fetch_nearest_cache(model, tokens[:-1])
                count = len(tokens) - 1 - len(rest)
        is_hit = found is not None and count > 0
        if model == MODEL:
            self.lookups += 1
            self.hits += is_hit
            self.cached_tokens += count if is_hit else 0
        if not is_hit:
            return None, 0
        _cut(found[0].caches)
        return found[0].caches, count

    def keep(self, tokens: Sequence[int], caches: Caches, running_bytes: int, model: str = MODEL) -> None:
        """Keep what was computed for `tokens`, where it fits beside the running requests."""
        if not self.limit_bytes or not tokens:
            return
        mx.eval([cache.state for cache in caches])
        own = sum(cache.nbytes for cache in caches)
        size, running, is_fixed = self.agree([own, running_bytes, not can_trim_prompt_cache(caches)])
        room = self.limit_bytes - running
        if size <= room:
            self._entries.insert_cache(model, list(tokens), [_Kept(caches, size, not is_fixed)])
        self._entries.trim_to(n_bytes=room)

    def make_room(self, running_bytes: int) -> None:
        """Throw the oldest out for running requests that have grown."""
        if self.kept_bytes:
            (running,) = self.agree([running_bytes])
            self._entries.trim_to(n_bytes=self.limit_bytes - running)


def _cut(caches: Caches) -> None:
    """Give back the places behind what is known: a short beginning of a long entry would hold all of its bytes."""
    for cache in caches:
        if type(cache) is not KVCache:
            continue
        keys: Any = cache.keys
        values: Any = cache.values
        places = -(-cache.offset // cache.step) * cache.step
        if keys.shape[2] > places:
            # Slices alone would share the memory of the whole.
            cache.keys, cache.values = (mx.contiguous(each[..., :places, :]) for each in (keys, values))

"""Pure: which endpoint has most of a conversation in its cache, and how much longer its line may be for that.

A prompt is cut into blocks, at its messages and inside long texts; a block's name is a hash over everything up to its
end. Engines keep what they have read and find it again by its beginning, so whoever was sent a prompt is a holder of
all its blocks, and the next turn of that conversation begins with them. A block that many conversations go on from in
different ways (a system prompt of everybody) draws nobody anywhere: every endpoint soon has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.gateway.routing.table import EndpointIdentity

MOST_BLOCKS = 16_384
"""Blocks that are remembered, about 8 MB; the ones that were used longest ago go first."""
LONGEST_BLOCK = 4_096
"""Characters of a text after which it is cut."""
MOST_IN_PROMPT = 256
"""Blocks of one prompt that are looked at, from its beginning."""
MOST_HOLDERS = 8
"""Endpoints that are remembered for one block."""
COMMON = 8
"""Continuations of a block from which it belongs to nobody in particular."""
WORTH = 500
"""Characters (about 125 tokens) whose reading costs as much as one more request beside one's own."""
LEAST_WORTH = 200
"""Characters below which it does not matter who has them: short questions that are asked again take turns."""
MOST_AHEAD = 4.0
"""Requests in flight more than the least busy endpoint has that the largest prefix is worth."""
TRUSTED = 0.25
"""Share of reports that a prefix was really found, below which an endpoint's cache is taken for useless."""

_NEW = 0.2
"""Share of a new report in the moving mean of an endpoint."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt as far as caches are concerned."""

    blocks: tuple[int, ...]
    """Hashes, each over everything up to the block's end."""
    sizes: tuple[int, ...]
    """Characters up to the end of each block."""


@dataclass(slots=True)
class _Block:
    next_block: int | None = None
    continuations: int = 0
    """How many blocks were seen behind it, one after another; a conversation has one."""
    holders: dict[EndpointIdentity, int] = field(default_factory=dict)
    """The endpoints that were sent it, each with the life that it was in, the latest last."""


def prefix_of(document: Mapping[str, Any]) -> Prefix | None:
    """Cut the prompt of a chat or text completion into blocks; None where there is none to speak of."""
    messages = document.get("messages")
    if isinstance(messages, list):
        return _cut(document.get("tools"), ((each.get("role"), _content(each)) for each in messages))
    prompt = document.get("prompt")
    return _cut(None, [("", prompt)]) if isinstance(prompt, str) else None


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str) and "tool_calls" not in message:
        return content
    return repr((content, message.get("tool_calls")))


def _cut(tools: object, texts: Iterable[tuple[object, str]]) -> Prefix:
    chain, size = hash(repr(tools)) if tools else 0, 0
    blocks: list[int] = []
    sizes: list[int] = []
    for role, text in texts:
        if len(blocks) >= MOST_IN_PROMPT:
            break
        # A text is cut only where more of it follows: the end of a message is the end of a block.
        pieces = (
            (text,)
            if len(text) <= LONGEST_BLOCK
            else [text[start : start + LONGEST_BLOCK] for start in range(0, len(text), LONGEST_BLOCK)]
        )
        for piece in pieces:
            chain = hash((chain, role, piece))
            size += len(piece)
            blocks.append(chain)
            sizes.append(size)
    return Prefix(tuple(blocks[:MOST_IN_PROMPT]), tuple(sizes[:MOST_IN_PROMPT]))


class Affinity:
    """Remembers who was sent which blocks. Changed by its owner only, with every answer."""

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self._most = most_blocks
        self._blocks: dict[int, _Block] = {}
        """By hash, the one that was used longest ago first."""
        self._lives: dict[EndpointIdentity, int] = {}
        """A number for each cache that is known; another one once an endpoint has lost its cache."""
        self._last_life = 0
        self.drawn = 0
        """Requests that were sent to an endpoint which should hold something of their prompt."""
        self.found = 0
        """Such requests of which the endpoint said that it did."""
        self.gone = 0
        """Such requests of which it said that it did not."""
        self._found: dict[EndpointIdentity, float] = {}
        """Share of the reports of each endpoint that something was found where that was expected."""

    def __len__(self) -> int:
        return len(self._blocks)

    def known(self, prefix: Prefix, candidates: Iterable[EndpointIdentity]) -> dict[EndpointIdentity, int]:
        """Return how many characters of a prompt each candidate should have in its cache, without what is common."""
        found: dict[EndpointIdentity, int] = {}
        if not prefix.blocks or prefix.blocks[0] not in self._blocks:
            return found
        lives = [(one, self._lives[one]) for one in candidates if one in self._lives]
        common = 0
        for name, size in zip(prefix.blocks, prefix.sizes, strict=True):
            block = self._blocks.get(name)
            if block is None:
                break
            holders = [one for one, life in lives if block.holders.get(one) == life]
            if not holders:
                break
            if block.continuations >= COMMON:
                common = size
                found.clear()
                continue
            for identity in holders:
                found[identity] = size - common
        return found

    def allowances(self, prefix: Prefix, candidates: Iterable[EndpointIdentity]) -> dict[EndpointIdentity, float]:
        """Return how many requests in flight more than others each candidate may have and still be the best choice.

        Candidates that hold nothing of the prompt, or whose cache was of no use lately, are left out.
        """
        return {
            identity: min(size / WORTH, MOST_AHEAD)
            for identity, size in self.known(prefix, candidates).items()
            if size >= LEAST_WORTH and self._found.get(identity, 1.0) >= TRUSTED
        }

    def sent(self, prefix: Prefix, identity: EndpointIdentity) -> None:
        """Take note of an endpoint that has answered a prompt, and so has read it."""
        life = self._lives.get(identity) or self._new_life(identity)
        following: int | None = None
        # From the end on, so that of a prompt the beginning is forgotten last.
        for name in reversed(prefix.blocks):
            block = self._blocks.pop(name, None) or _Block()
            self._blocks[name] = block
            if following is not None and following != block.next_block:
                block.next_block = following
                block.continuations += 1
            block.holders.pop(identity, None)
            block.holders[identity] = life
            if len(block.holders) > MOST_HOLDERS:
                del block.holders[next(iter(block.holders))]
            following = name
        while len(self._blocks) > self._most:
            del self._blocks[next(iter(self._blocks))]

    def reported(self, identity: EndpointIdentity, cached_tokens: int) -> None:
        """Take note of what an endpoint says that it has found of a prompt that it should have held something of."""
        if cached_tokens > 0:
            self.found += 1
        else:
            self.gone += 1
        before = self._found.get(identity, 1.0)
        self._found[identity] = before + _NEW * ((cached_tokens > 0) - before)

    def lost(self, identity: EndpointIdentity) -> None:
        """Forget what an endpoint held: it was started anew, or does not answer."""
        self._lives.pop(identity, None)
        self._found.pop(identity, None)

    def keep_only(self, is_listed: Callable[[EndpointIdentity], bool]) -> None:
        """Forget endpoints that are not listed any more."""
        for identity in [one for one in self._lives if not is_listed(one)]:
            self.lost(identity)

    def _new_life(self, identity: EndpointIdentity) -> int:
        # Lives are numbered from 1 and never again, so that blocks that name an old one fit nobody.
        self._last_life += 1
        self._lives[identity] = self._last_life
        return self._last_life

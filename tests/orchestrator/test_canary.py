"""How many prompts of its canary a group is asked at a time."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from orchestrator.canary import Asker, NoAnswerError, judge_alone
from orchestrator.execute import Progress
from schemas.canary import SHORT_PROMPTS
from tests.fakes.upstream import Exchange, FakeUpstream


class Group:
    """Answers as a worker does that has only so many places.

    `together` says of which prompt on (each is asked alone before) how many it waits for before it answers the first.
    """

    def __init__(self, places: int, together: int = 1) -> None:
        self._left = places
        self.most = 0
        self._places = places
        self._together = together
        self._came = 0
        self._crowd = asyncio.Event()

    async def behave(self, exchange: Exchange) -> None:
        if exchange.seen.path == "/v1/models":
            await exchange.answer(body={"data": [{"max_model_len": 128}]})
            return
        self._came += 1
        if self._came >= len(SHORT_PROMPTS) + self._together:
            self._crowd.set()
        if not self._left:
            await exchange.answer(503, {"error": {"code": "queue_full"}})
            return
        self._left -= 1
        self.most = max(self.most, self._places - self._left)
        if self._came > len(SHORT_PROMPTS):
            await self._crowd.wait()
            await asyncio.sleep(0.05)  # who comes uninvited is seen
        self._left += 1
        choice = {"token_ids": [1, 2], "text": "a b"}
        await exchange.answer(body={"choices": [choice], "usage": {"prompt_tokens": 3}})


async def judged(group: Group, at_once: int) -> str:
    def report(_: Progress) -> None:
        pass

    async with FakeUpstream() as fake, httpx.AsyncClient(trust_env=False) as http:
        fake.behave = group.behave
        asker = Asker(http, fake.url, "tiny", None, 60.0, at_once)
        return (await judge_alone(asker, 16, report)).outcome


async def test_a_group_with_one_place_is_asked_one_prompt_after_the_other() -> None:
    group = Group(1)
    assert await judged(group, 1) == "limited"
    assert group.most == 1


async def test_a_group_with_places_is_asked_all_short_prompts_together() -> None:
    group = Group(64, together=4)
    assert await judged(group, 4) == "limited"
    assert group.most == 4


async def test_a_group_that_refuses_a_prompt_has_not_answered() -> None:
    with pytest.raises(NoAnswerError, match="queue_full"):
        await judged(Group(1, together=2), 4)

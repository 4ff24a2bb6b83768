"""How many prompts of its canary a group is asked at a time."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from orchestrator.canary import Asker, NoAnswerError, judge_alone
from orchestrator.execute import Progress
from tests.fakes.upstream import Exchange, FakeUpstream


class Group:
    """Answers as a worker does that has only so many places."""

    def __init__(self, places: int) -> None:
        self._left = places
        self.most = 0
        self._places = places

    async def behave(self, exchange: Exchange) -> None:
        if exchange.seen.path == "/v1/models":
            await exchange.answer(body={"data": [{"max_model_len": 128}]})
            return
        if not self._left:
            await exchange.answer(503, {"error": {"code": "queue_full"}})
            return
        self._left -= 1
        self.most = max(self.most, self._places - self._left)
        await asyncio.sleep(0.05)
        self._left += 1
        choice = {"token_ids": [1, 2], "text": "a b"}
        await exchange.answer(body={"choices": [choice], "usage": {"prompt_tokens": 3}})


async def judged(group: Group, at_once: int) -> str:
    def report(_: Progress) -> None:
        pass

    async with FakeUpstream() as fake, httpx.AsyncClient(trust_env=False) as http:
        fake.behave = group.behave
        asker = Asker(http, fake.url, "tiny", None, 30.0, at_once)
        return (await judge_alone(asker, 16, report)).outcome


async def test_a_group_with_one_place_is_asked_one_prompt_after_the_other() -> None:
    group = Group(1)
    assert await judged(group, 1) == "limited"
    assert group.most == 1


async def test_a_group_with_places_is_asked_all_short_prompts_together() -> None:
    group = Group(64)
    assert await judged(group, 4) == "limited"
    assert group.most == 4


async def test_a_group_that_refuses_a_prompt_has_not_answered() -> None:
    with pytest.raises(NoAnswerError, match="queue_full"):
        await judged(Group(1), 4)

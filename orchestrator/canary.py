"""I/O: asks a group the canary's prompts, alone and together, and compares what it says with what one process says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx

from orchestrator.comparison import (
    Difference,
    Heard,
    Same,
    Tie,
    compare,
    difference_words,
    disagreement,
    rest_of,
)
from orchestrator.execute import Progress, Report
from schemas.canary import ANSWER_TOKENS, LONG_PROMPT, SHORT_PROMPTS, Reference, ReferenceAnswer, long_text
from schemas.verdict import Verdict

MOST_TIES = 4
"""How often a group is asked again behind a place where two tokens were all but equally probable, for each prompt."""
AT_ONCE = 4
"""Prompts that a group is asked together, where it has a place for each of them."""
WORDS_PER_TOKEN = 0.5
"""By which the length of a long prompt is guessed where nobody has counted its tokens."""

Prompt = str | tuple[int, ...]
Asked = TypeVar("Asked")
Got = TypeVar("Got")


class NoAnswerError(Exception):
    """The group did not answer a prompt."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks one group."""

    http: httpx.AsyncClient
    url: str
    model: str
    token: str | None
    timeout_s: float
    """For one answer."""
    at_once: int = AT_ONCE
    """How many prompts it may be asked together: it refuses what it has no place for."""

    async def ask(self, prompt: Prompt, max_tokens: int = ANSWER_TOKENS) -> Heard:
        """Return the answer that always takes the most probable token; raises `NoAnswerError`."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "return_token_ids": True,
        }
        answer = await self._post("/v1/completions", httpx.Timeout(self.timeout_s, connect=5.0), json=body)
        try:
            choice = answer.json()["choices"][0]
            tokens = tuple(int(token) for token in choice["token_ids"])
            return Heard(tokens, str(choice["text"]), int(answer.json()["usage"]["prompt_tokens"]))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise NoAnswerError(f"its answer makes no sense: {answer.text[:300]}") from error

    async def context(self) -> int:
        """Return how many tokens a prompt and its answer may have together; raises `NoAnswerError`."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            answer = await self.http.get(f"{self.url}/v1/models", headers=headers, timeout=httpx.Timeout(30.0))
            return int(answer.json()["data"][0]["max_model_len"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise NoAnswerError(f"it does not tell the length of its context: {error!r}") from error

    async def tell(self, verdict: Verdict) -> None:
        """Tell the group what came of it: one that has failed ends by itself. Raises `NoAnswerError`."""
        content = verdict.model_dump_json().encode()
        await self._post("/canary", httpx.Timeout(30.0), content=content)

    async def _post(self, path: str, timeout: httpx.Timeout, **what: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            answer = await self.http.post(f"{self.url}{path}", headers=headers, timeout=timeout, **what)
        except httpx.HTTPError as error:
            raise NoAnswerError(f"it did not answer: {error or type(error).__name__}") from error
        if answer.status_code != 200:
            raise NoAnswerError(f"it answered {answer.status_code}: {answer.text[:300]}")
        return answer


async def judge(asker: Asker, reference: Reference, report: Report) -> Verdict:
    """Ask the prompts of a reference: one alone, the short ones together, the long one; return what came of it.

    Raises `NoAnswerError`.
    """
    short = [answer for answer in reference.answers if answer.name != LONG_PROMPT]
    rounds = [short[:1], short, *([answer] for answer in reference.answers if answer.name == LONG_PROMPT)]
    total, done, firm = sum(len(asked) for asked in rounds), 0, 0
    differences: list[str] = []
    for asked in rounds:
        longest = max(len(answer.prompt) for answer in asked)
        report(Progress(f"canary (prompt of {longest} tokens)", done, total, "answers"))
        found = await _together(asker, partial(_compared, asker), asked)
        for answer, outcome in zip(asked, found, strict=True):
            if isinstance(outcome, Difference):
                differences.append(difference_words(answer.name, len(answer.prompt), outcome, together=len(asked)))
            else:
                firm += outcome
        done += len(asked)
        if differences:
            return Verdict(outcome="failed", prompts=done, longest=reference.longest, words=tuple(differences))
    report(Progress("canary", total, total, "answers"))
    words = () if firm else ("at no token was one process itself sure of its choice",)
    return Verdict(
        outcome="passed" if firm else "limited",
        prompts=len(reference.answers),
        longest=reference.longest,
        words=words,
    )


async def _together(asker: Asker, ask: Callable[[Asked], Awaitable[Got]], prompts: Iterable[Asked]) -> Sequence[Got]:
    """Ask as many at a time as the group has places."""
    places = asyncio.Semaphore(asker.at_once)

    async def one(prompt: Asked) -> Got:
        async with places:
            return await ask(prompt)

    return await asyncio.gather(*(one(prompt) for prompt in prompts))


async def _compared(asker: Asker, answer: ReferenceAnswer) -> int | Difference:
    """Return in how many places the answer is right where no other would have been, or where it is wrong."""
    start, firm = 0, 0
    prompt, left = answer.prompt, len(answer.tokens)
    for _ in range(MOST_TIES + 1):
        match compare(answer, await asker.ask(prompt, left), start):
            case Difference() as difference:
                return difference
            case Same(firm=more):
                return firm + more
            case Tie(firm=more) as tie:
                firm += more
                start = tie.position + 1
                prompt, left = rest_of(answer, tie)
                if not left:
                    return firm
    return firm


async def judge_alone(asker: Asker, long_tokens: int, report: Report) -> Verdict:
    """Ask the same without a reference: that everything is answered, and that a batch changes nothing at once.

    Raises `NoAnswerError`.
    """
    texts = list(SHORT_PROMPTS.values())
    total = 2 * len(texts) + 1
    alone: list[Heard] = []
    for text in texts:
        report(Progress("canary without a reference", len(alone), total, "answers"))
        alone.append(await asker.ask(text))
    together = await _together(asker, asker.ask, texts)
    report(Progress(f"canary (prompt of about {long_tokens} tokens)", 2 * len(texts), total, "answers"))
    room = min(long_tokens, await asker.context() // 2)
    long = await asker.ask(long_text(round(room * WORDS_PER_TOKEN)))
    alike, asked = disagreement(alone, together)
    words = [f"not compared with one process; {alike} of {asked} answers began alike alone and in a batch"]
    empty = sum(not heard.tokens for heard in (*alone, *together, long))
    if empty:
        words.append(f"{empty} answers were empty")
    has_failed = alike == 0 or empty
    return Verdict(
        outcome="failed" if has_failed else "limited",
        prompts=asked + 1,
        longest=long.prompt_tokens,
        words=tuple(words),
    )

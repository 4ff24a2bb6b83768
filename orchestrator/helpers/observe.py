"""I/O: asks every helper at once who it is and what it has. GETs with deadlines; a helper's key goes to it alone."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from collections.abc import Iterable, Mapping

import httpx

from orchestrator.helpers import silence
from orchestrator.helpers.answers import Answer
from orchestrator.helpers.identify import all_questions, first_questions, loading, recognised, unrecognised
from orchestrator.observed import HelperSeen, HelperSilent
from schemas.base import HelperName
from schemas.stack import Helper

CONNECT_S = 2.0
ANSWER_S = 3.0
"""Model lists come from memory or a directory: milliseconds, also while a helper generates."""
HELPER_S = 8.0
"""All questions to one helper."""
BODY_LIMIT = 4 << 20
"""Bytes of one answer that are read; a list of a thousand models is 400 KB."""
MAX_QUESTIONS = 4
"""Questions to one helper at once."""


async def observe(
    http: httpx.AsyncClient, helpers: Mapping[HelperName, Helper], environ: Mapping[str, str]
) -> Mapping[HelperName, HelperSeen | HelperSilent]:
    """Return what each helper says of itself. Never raises for one; `environ` holds the keys that files refer to."""
    async with asyncio.TaskGroup() as group:
        asked = {name: group.create_task(look(http, name, helper, environ)) for name, helper in helpers.items()}
    return {name: task.result() for name, task in asked.items()}


async def look(
    http: httpx.AsyncClient, name: HelperName, helper: Helper, environ: Mapping[str, str]
) -> HelperSeen | HelperSilent:
    """Return what one helper says of itself, at most `HELPER_S` later."""
    try:
        headers = key_header(name, helper, environ)
    except KeyError as error:
        return HelperSilent(str(error.args[0]), "key")
    url = base_url(helper.url)
    try:
        async with asyncio.timeout(HELPER_S):
            return await _identify(http, url, helper, headers)
    except TimeoutError:
        return silence.no_answer(url, HELPER_S)
    except httpx.HTTPError as error:
        return silence_of(url, error)
    except (httpx.InvalidURL, ValueError) as error:
        return HelperSilent(f"{url} cannot be asked: {error}; correct helpers.{name}.url", "broken")


def base_url(url: str) -> str:
    """Return a helper's base URL without `/v1`, which the paths that are asked bring themselves."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def key_header(name: HelperName, helper: Helper, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the header with a helper's key; raises `KeyError` with a sentence where the key cannot be sent."""
    if helper.key is None:
        return {}
    try:
        key = helper.key.reveal(environ).strip()
    except KeyError as error:
        raise KeyError(f"helpers.{name}.key: the environment variable {error.args[0]} is not set") from error
    if not key.isascii() or not key.isprintable():
        raise KeyError(f"helpers.{name}.key: only printable ASCII characters can be sent in a header")
    return {"authorization": f"Bearer {key}"}


async def _identify(
    http: httpx.AsyncClient, url: str, helper: Helper, headers: Mapping[str, str]
) -> HelperSeen | HelperSilent:
    answers = await _ask_all(http, url, first_questions(helper.api), headers)
    dialect = recognised(answers, was_all_asked=False)
    if dialect is None:
        answers |= await _ask_all(http, url, [path for path in all_questions() if path not in answers], headers)
        dialect = recognised(answers, was_all_asked=True)
    if dialect is None:
        return unrecognised(url, answers)
    answers |= await _ask_all(http, url, [path for path in dialect.details if path not in answers], headers)
    # It may have loaded between two questions: known by the one, its list was refused before.
    return loading(url, answers) or dialect.read(answers)


async def _ask_all(
    http: httpx.AsyncClient, url: str, paths: Iterable[str], headers: Mapping[str, str]
) -> dict[str, Answer]:
    """Ask several paths side by side. Raises what connecting raises; a question that fails later is left out."""
    places = asyncio.Semaphore(MAX_QUESTIONS)

    async def ask_in_turn(path: str) -> Answer | httpx.HTTPError:
        async with places:
            try:
                return await ask(http, url + path, headers)
            except httpx.HTTPError as error:
                return error

    wanted = tuple(paths)
    got = dict(zip(wanted, await asyncio.gather(*(ask_in_turn(path) for path in wanted)), strict=True))
    answers = {path: answer for path, answer in got.items() if isinstance(answer, Answer)}
    failures = [failure for failure in got.values() if isinstance(failure, httpx.HTTPError)]
    if failures and not answers:
        raise failures[0]
    return answers


async def ask(http: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> Answer:
    """Return the answer to one GET, of its body at most `BODY_LIMIT` bytes; redirects are not followed.

    Raises `httpx.HTTPError`.
    """
    timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
    asked = {"accept": "application/json", "accept-encoding": "identity", **headers}
    body = bytearray()
    async with http.stream("GET", url, headers=asked, timeout=timeout, follow_redirects=False) as answer:
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > BODY_LIMIT:
                break
        return Answer(answer.status_code, _parsed(bytes(body)), answer.headers.get("server", ""))


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body) if len(body) <= BODY_LIMIT else None
    except (ValueError, RecursionError):
        return None


def silence_of(url: str, error: httpx.HTTPError) -> HelperSilent:
    """Say why an exchange failed, from the error of the system below it."""
    if isinstance(error, httpx.ConnectTimeout):
        return silence.no_answer(url, CONNECT_S)
    if isinstance(error, httpx.TimeoutException):
        host, port = silence.place(url)
        return HelperSilent(f"{host}:{port} takes connections and answers nothing within {ANSWER_S:g} s", "broken")
    for cause in causes(error):
        match cause:
            case ssl.SSLError():
                return HelperSilent(f"{url}: no TLS connection: {cause.reason or cause}", "tls")
            case socket.gaierror():
                return silence.unknown_host(url)
            case OSError(errno=int(number)):
                return silence.of_error(url, number, str(cause), is_macos=sys.platform == "darwin")
            case _:
                continue
    return silence.of_error(url, None, str(error) or type(error).__name__, is_macos=sys.platform == "darwin")


def causes(error: BaseException) -> list[BaseException]:
    """Return an error with everything that led to it, the nearest first; also the members of groups."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop(0)
        if current is None or current in found:
            continue
        found.append(current)
        todo += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            todo += current.exceptions
    return found

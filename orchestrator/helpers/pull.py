"""I/O: asks an Ollama helper to pull a model, and follows it: bytes of all layers, errors in the stream, standstill.

Shape: ollama/ollama `docs/api.md`, "Pull a model": a line of JSON each with `status`, and `digest`, `total` and
`completed` while a layer is fetched; a failure is a line with `error`, also after 200. A pull whose caller leaves is
ended, and resumed from where it was by the next one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import httpx

from orchestrator.execute import EffectError, Progress, Report
from orchestrator.helpers.observe import CONNECT_S, base_url, key_header, silence_of
from schemas.base import HelperName
from schemas.foreign import count, fields, message, text
from schemas.stack import Helper

STALL_S = 300.0
"""Without any change this long, a pull is given up. Ollama itself retries a part that stands still after 30 s, and is
silent while it computes the checksum of a layer: about 60 s for 40 GB on a slow disk."""
LINE_LIMIT = 1 << 20


async def pull(
    http: httpx.AsyncClient,
    name: HelperName,
    helper: Helper,
    model: str,
    report: Report,
    environ: Mapping[str, str],
    *,
    stall_s: float = STALL_S,
) -> None:
    """Make a helper have a model; returns once it says so. Cancelling ends the transfer.

    `report` gets the bytes of all layers known so far. Raises `EffectError`: unknown model, full disk, no progress for
    `stall_s` seconds, a server that cannot pull.
    """
    try:
        headers = key_header(name, helper, environ)
    except KeyError as error:
        raise EffectError(str(error.args[0])) from error
    url = base_url(helper.url)
    transfer = _Transfer(model, report)
    timeout = httpx.Timeout(None, connect=CONNECT_S)
    request = http.stream(
        "POST", f"{url}/api/pull", json={"model": model, "stream": True}, headers=headers, timeout=timeout
    )
    try:
        async with asyncio.timeout(stall_s) as standstill, request as answer:
            if answer.status_code != 200:
                raise _refusal(name, model, answer.status_code, await anext(_lines(answer), b""))
            loop = asyncio.get_running_loop()
            async for line in _lines(answer):
                if transfer.take(line):
                    standstill.reschedule(loop.time() + stall_s)
                if transfer.is_complete:
                    return
    except TimeoutError as error:
        raise EffectError(
            f"{name} has made no progress with {model} for {stall_s:g} s ({transfer.phase}); "
            "run apply again, it goes on from there"
        ) from error
    except httpx.HTTPError as error:
        raise EffectError(
            f"{name} stopped answering while it pulled {model}: {silence_of(url, error).reason}"
        ) from error
    raise EffectError(f"{name} ended the pull of {model} without a word ({transfer.phase}); see its own log")


class _Transfer:
    """How far a pull is. Layers come one after the other: the total grows until the last one has begun."""

    def __init__(self, model: str, report: Report) -> None:
        self.phase = "not begun"
        self.is_complete = False
        self._model = model
        self._report = report
        self._layers: dict[str, tuple[int, int]] = {}

    def take(self, line: bytes) -> bool:
        """Take one line of the stream; tells whether it says anything new. Raises `EffectError` for an error in it."""
        said = _parsed(line)
        if error := message(said.get("error")):
            raise EffectError(f"{self._model} could not be pulled: {_with_mend(error)}")
        before = (self.phase, dict(self._layers))
        self.phase = text(said.get("status")) or self.phase
        self.is_complete = self.phase == "success"
        digest, total = text(said.get("digest")), count(said.get("total"))
        if digest and total is not None:
            done = max(count(said.get("completed")) or 0, self._layers.get(digest, (0, 0))[0])
            self._layers[digest] = (min(done, total), total)
        is_news = (self.phase, self._layers) != before
        if is_news:
            done, total = (sum(layer[part] for layer in self._layers.values()) for part in (0, 1))
            self._report(Progress("pull" if digest else self.phase, done, total or None, "bytes"))
        return is_news


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > LINE_LIMIT:
            raise EffectError("the helper sends a line without an end; it is no Ollama")
    if rest.strip():
        yield rest


def _parsed(line: bytes) -> Mapping[str, object]:
    try:
        return fields(json.loads(line))
    except (ValueError, RecursionError):
        return {}


def _refusal(name: HelperName, model: str, status: int, body: bytes) -> EffectError:
    if error := message(_parsed(body).get("error")):
        return EffectError(f"{model} could not be pulled: {_with_mend(error)}")
    if status in (401, 403):
        return EffectError(f"{name} asks for a key to pull {model}; set helpers.{name}.key")
    return EffectError(f"{name} cannot pull models (HTTP {status}): is it an Ollama?")


def _with_mend(error: str) -> str:
    """Add what to do to the errors that people meet. Texts: ollama/ollama `server/images.go`, issues 1731 and 7029."""
    lowered = error.lower()
    if "no space left" in lowered:
        return f"{error}; free some disk on that machine (`ollama rm`) and run apply again, it goes on from there"
    if "file does not exist" in lowered or "not found" in lowered:
        return f"{error}; the registry has no such model or tag, check its name"
    if "dial tcp" in lowered or "i/o timeout" in lowered or "no such host" in lowered:
        return f"{error}; that machine cannot reach its model registry"
    return error

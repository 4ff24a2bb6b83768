"""I/O: asks a worker or a gateway whether it really serves: a token, a vector or a score, these routes are held."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable

import httpx
from pydantic import ValidationError

from orchestrator.proof import PATHS, Proof, proof_body, proof_of
from orchestrator.transport.http import NodeSilentError
from schemas.admin import ConfigReport
from schemas.messages import WorkerReadiness, WorkerStatus
from schemas.model import ModelKind
from schemas.prefer import HEADER, wait_preference

PROBE_TIMEOUT_S = 3.0
"""A loopback or LAN answer takes milliseconds, also from a worker in the middle of a long prefill."""
PROOF_TIMEOUT_S = 30.0
"""What all of a request for embeddings or reranking may take: the gateway's limit."""
RELOAD_S = 30.0
"""For a gateway to read its files: tens of milliseconds, seconds for thousands of instances on a busy machine."""
REASON_CHARS = 300
GATEWAY_TRIES = 8
"""Connections made to find both of two gateways that share a port: the system picks one of them each time."""


ClientMaker = Callable[[], httpx.AsyncClient]


def client() -> httpx.AsyncClient:
    """Return an HTTP client for control traffic: no proxies from the environment, no redirects."""
    return httpx.AsyncClient(timeout=PROBE_TIMEOUT_S, trust_env=False, follow_redirects=False, verify=_trusted())


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Return whom to trust: read once, as reading takes 40 ms and a watcher asks all the time."""
    return httpx.create_ssl_context(trust_env=False)


async def worker_readiness(http: httpx.AsyncClient, url: str, token: str | None) -> WorkerReadiness | None:
    """Return what a worker says of itself; None while it does not answer."""
    body = await _get(http, f"{url}/ready", token)
    try:
        return None if body is None else WorkerReadiness.from_json(body)
    except ValidationError:
        return None


async def worker_status(http: httpx.AsyncClient, url: str, token: str | None) -> WorkerStatus | None:
    """Return everything that a worker says of itself; None while it does not answer."""
    body = await _get(http, f"{url}/status", token)
    try:
        return None if body is None else WorkerStatus.from_json(body)
    except ValidationError:
        return None


async def prove(
    http: httpx.AsyncClient, url: str, kind: ModelKind, model: str, token: str | None, wait_s: float = 0.0
) -> Proof:
    """Ask for one vector, or for the order of a few documents. Never raises.

    `wait_s` is what a model gets that has to be brought into memory first.
    """
    headers = _bearer(token)
    headers |= {HEADER: wait_preference(wait_s)} if wait_s else {}
    try:
        body = proof_body(kind, model)
        timeout_s = PROOF_TIMEOUT_S + wait_s
        answer = await http.post(f"{url}{PATHS[kind]}", json=body, headers=headers, timeout=timeout_s)
        if answer.status_code != httpx.codes.OK:
            return Proof(fault=f"HTTP {answer.status_code}: {answer.text[:REASON_CHARS]}")
        return proof_of(kind, answer.json())
    except httpx.HTTPError as error:
        return Proof(fault=f"{type(error).__name__}: {error}")
    except ValueError:
        return Proof(fault="its answer is no JSON")


async def gateway_reports(
    make: ClientMaker, bind: str, port: int, pids: set[int], token: str | None
) -> dict[int, ConfigReport]:
    """Return what the gateways on a port say: pid -> report. Stops once all of `pids` were heard.

    `make` gives a client of the gateway's node, `token` is the orchestrator's own.
    """
    found: dict[int, ConfigReport] = {}
    for _ in range(GATEWAY_TRIES):
        async with make() as http:  # a new connection each time: an open one leads to the same process for ever
            body = await _get(http, f"{gateway_url(bind, port)}/admin/config", token)
        try:
            report = None if body is None else ConfigReport.from_json(body)
        except ValidationError:
            report = None
        if report is None:
            break
        found[report.pid] = report
        if pids <= found.keys():
            break
    return found


async def reload_gateways(
    make: ClientMaker, bind: str, port: int, token: str | None, processes: int
) -> tuple[ConfigReport, ...]:
    """Make the gateways on a port read their files now; returns what each serves afterwards, none where none answers.

    `processes` is how many may listen there; each is met on a connection of its own, as the system picks one each time.
    Raises `TimeoutError` where something takes the connection and says nothing.
    """
    headers = _bearer(token)
    timeout = httpx.Timeout(RELOAD_S, connect=PROBE_TIMEOUT_S)
    found: dict[int, ConfigReport] = {}
    for _ in range(GATEWAY_TRIES if processes > 1 else 1):
        async with make() as http:
            try:
                if found:  # the second question goes the way of the first: who has read its files is not asked again
                    seen = await http.get(f"{gateway_url(bind, port)}/admin/config", headers=headers, timeout=timeout)
                    if ConfigReport.from_json(seen.content).pid in found:
                        continue
                answer = await http.post(
                    f"{gateway_url(bind, port)}/admin/config/reload", headers=headers, timeout=timeout
                )
                report = ConfigReport.from_json(answer.content)
            except httpx.ReadTimeout as error:
                message = f"the gateway on port {port} did not read its files in {RELOAD_S:.0f} s"
                raise TimeoutError(message) from error
            except (httpx.HTTPError, ValidationError):
                break
        found[report.pid] = report
        if len(found) >= processes:
            break
    return tuple(found.values())


async def requests_in_flight(
    make: ClientMaker, bind: str, port: int, token: str | None, processes: int, url: str
) -> int | None:
    """Return how many requests the gateways on a port have under way to an address; 0 where none listens.

    None where one is there and does not say. `processes` is that of `reload_gateways`.
    """
    headers = _bearer(token)
    found: dict[int, int] = {}
    for _ in range(GATEWAY_TRIES if processes > 1 else 1):
        async with make() as http:
            try:
                answer = await http.get(f"{gateway_url(bind, port)}/admin/config", headers=headers)
                report = ConfigReport.from_json(answer.content)
            except NodeSilentError:
                return None
            except httpx.ConnectError:
                break
            except (httpx.HTTPError, ValidationError):
                return None
        here = [endpoint for endpoint in report.endpoints if endpoint.url.rstrip("/") == url]
        found[report.pid] = sum(endpoint.in_flight for endpoint in here)
        if len(found) >= processes:
            break
    return sum(found.values())


def gateway_url(bind: str, port: int) -> str:
    """Return where a gateway can be asked from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)  # noqa: S104
    return f"http://{host}:{port}"


async def _get(http: httpx.AsyncClient, url: str, token: str | None) -> bytes | None:
    try:
        answer = await http.get(url, headers=_bearer(token))
    except httpx.HTTPError:
        return None
    return answer.content if answer.status_code in (200, 503) else None


def _bearer(token: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}

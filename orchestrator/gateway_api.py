"""I/O: the gateway of a stack, asked for what it knows and told what to do, with the orchestrator's own credential."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from orchestrator.addresses import node_address, url_host
from orchestrator.cluster import Cluster
from orchestrator.readiness import ClientMaker, gateway_url
from orchestrator.transport.http import NodeSilentError
from schemas.stack import Stack


class GatewayError(Exception):
    """The gateway did not answer, or refused; says why, and what to do where that is known."""

    def __init__(self, message: str, status: int = 0, *, is_absent: bool = False) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the refusal; 0 where there was no answer."""
        self.is_absent = is_absent
        """Nothing listens there. One that takes a connection and gives no answer in time may serve on."""


@dataclass(frozen=True, slots=True)
class GatewayApi:
    """Where a stack's gateway is, and how it is asked."""

    stack: str
    url: str
    """Without a path; where its own machine finds it."""
    make: ClientMaker
    """Makes a client whose requests come from that machine."""
    token: str | None = field(repr=False)
    """The orchestrator's credential; None before the stack was ever applied."""

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that say who asks."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def client(self) -> httpx.AsyncClient:
        """Return a client whose requests say who asks."""
        http = self.make()
        http.headers.update(self.headers)
        return http

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """Return what is at a path; raises `GatewayError`."""
        return await self._ask("GET", path, query, None)

    async def post(self, path: str, document: Mapping[str, Any] | None = None) -> bytes:
        """Send a document, and return the answer; raises `GatewayError`."""
        return await self._ask("POST", path, None, document)

    async def _ask(
        self, method: str, path: str, query: Mapping[str, str] | None, document: Mapping[str, Any] | None
    ) -> bytes:
        content = None if document is None else json.dumps(document).encode()
        try:
            async with self.make() as http:
                answer = await http.request(
                    method, self.url + path, params=query, content=content, headers=self.headers, timeout=30.0
                )
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            is_absent = isinstance(error, httpx.ConnectError) and not isinstance(error, NodeSilentError)
            message = f"The gateway of {self.stack} does not answer at {self.url} ({reason})."
            raise GatewayError(message, is_absent=is_absent) from error
        if not answer.is_success:
            raise GatewayError(_said(answer), answer.status_code)
        return answer.content


def gateway_api(stack: Stack, cluster: Cluster) -> GatewayApi:
    """Return how the gateway of a stack is asked from here.

    On another machine it is asked from that machine itself, over ssh, also where it listens for others: it speaks plain
    HTTP, and the credential that may do everything never crosses a network in clear.
    """
    url = gateway_url(stack.gateway.bind, stack.gateway.port)
    token = cluster.directories.known_admin_token(cluster.stack)
    return GatewayApi(stack.stack, url, cluster.gateway_node.http, token)


def client_url(stack: Stack) -> str:
    """Return where clients find the gateway: a wildcard on another machine is called at that machine's address."""
    gateway, node = stack.gateway, stack.nodes[stack.gateway.node]
    address = node_address(node) if node.reach == "ssh" else None
    if address is not None and gateway.bind in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return f"http://{url_host(address)}:{gateway.port}"
    return gateway_url(gateway.bind, gateway.port)


def _said(answer: httpx.Response) -> str:
    """Return the message of an error in OpenAI's shape, or the status where it is none."""
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return f"The gateway answered with status {answer.status_code}."
    return str(message)

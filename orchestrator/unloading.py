"""I/O: asks a worker that loads on demand for the memory of its model."""

from __future__ import annotations

import asyncio
import time

import httpx

from orchestrator.transport.http import NodeSilentError

ANSWER_S = 75.0
"""A worker gives its memory back within 60 s, or ends."""
IDLE_S = 45.0
"""How long a model that is in use is waited for. One that was just loaded is kept for its client for 30 s (worker)."""
POLL_S = 1.0


async def unload_model(http: httpx.AsyncClient, url: str, token: str | None) -> str | None:
    """Return once the model is not in memory; else why it is kept.

    A worker that is gone holds nothing.
    """
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    due = time.monotonic() + IDLE_S
    while True:
        try:
            answer = await http.post(f"{url}/unload", headers=headers, timeout=ANSWER_S)
        except NodeSilentError as error:
            return f"its node could not be asked ({error})"
        except httpx.ConnectError:
            return None
        except httpx.HTTPError as error:
            return f"{url}/unload gave no answer ({type(error).__name__})"
        if answer.status_code == httpx.codes.OK:
            return None
        if answer.status_code != httpx.codes.CONFLICT:
            return f"{url}/unload answered {answer.status_code}; a worker of an older version needs a restart"
        if time.monotonic() >= due:
            return f"in use for {IDLE_S:.0f} s, and nothing in use is dropped; apply again when it is idle"
        await asyncio.sleep(POLL_S)

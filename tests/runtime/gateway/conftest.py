"""Fixtures of the gateway's tests."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.runtime.gateway.harness import LocalGateway, local_gateway, stack_document


@pytest.fixture
async def lab(tmp_path: Path) -> Any:
    """Return a function that starts a fake endpoint per behaviour (named a, b, c, ...) and a gateway before them."""
    async with AsyncExitStack() as stack:

        async def start(*behaviours: Behaviour, **more: Any) -> tuple[LocalGateway, list[FakeUpstream]]:
            fakes = [await stack.enter_async_context(FakeUpstream(behave)) for behave in behaviours]
            urls = {chr(ord("a") + index): fake.url for index, fake in enumerate(fakes)}
            gateway = await stack.enter_async_context(local_gateway(tmp_path, stack_document(urls, **more)))
            return gateway, fakes

        yield start

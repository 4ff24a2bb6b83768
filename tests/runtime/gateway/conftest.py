"""Fixtures of the gateway's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.runtime.gateway.harness import (
    Conf,
    LocalGateway,
    Running,
    gateway_process,
    local_gateway,
    stack_document,
    until,
)


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


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway process over a configuration with one good helper."""
    conf = Conf(tmp_path)
    async with FakeUpstream() as fake:
        document = stack_document({"a": fake.url})
        conf.write_stack(document)
        async with gateway_process(conf) as gateway:
            # The watches are set once the process follows its files; edits before that are read at start.
            await until(gateway.config)
            yield conf, gateway, fake, document

"""A gateway that asks for keys, and one of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.keys import KeysAt, NewKey
from schemas.keys import Scope
from tests.fakes.upstream import FakeUpstream
from tests.runtime.gateway.harness import Conf, LocalGateway, local_gateway, stack_document

KEYS_FILE = "keys.yaml"
KEYED = {"auth": {"keys_file": KEYS_FILE}}


@dataclass(frozen=True)
class Keyed:
    """The gateway, the endpoint behind it, its keys file, and a key of each scope."""

    gateway: LocalGateway
    fake: FakeUpstream
    keys: KeysAt
    made: dict[str, NewKey]

    def bearer(self, scope: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.made[scope].text}"}


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as found:
        yield found


@pytest.fixture
def conf(tmp_path: Path) -> Conf:
    return Conf(tmp_path)


@pytest.fixture
async def keyed(tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[Keyed]:
    keys = KeysAt(tmp_path, KEYS_FILE)
    scopes: tuple[Scope, ...] = ("inference", "metrics", "read", "admin")
    made = {scope: keys.add((scope,), name=scope) for scope in scopes}
    made["expired"] = keys.add(("admin",), life_s=-10.0)
    made["limited"] = keys.add(("inference",), roles=("chat",))
    document = stack_document({"a": fake.url}, gateway=KEYED, aliases={"gpt-4o-mini": ["chat"]})
    async with local_gateway(tmp_path, document) as gateway:
        yield Keyed(gateway, fake, keys, made)

"""Each feature of each client with each backend."""

from __future__ import annotations

import pytest

from tests.clients.outcomes import CLIENTS, STANDARD, Client, Outcomes
from tests.clients.serving import Backend
from tests.clients.small_model import reason_of

CASES = [
    pytest.param(client, backend, feature, id=f"{client.name}-{backend.name}-{feature}")
    for client in CLIENTS
    for backend in client.backends
    for feature in client.features()
]
SUITES = [
    pytest.param(client, backend, id=f"{client.name}-{backend.name}")
    for client in STANDARD
    for backend in client.backends
]


@pytest.mark.parametrize(("client", "backend", "feature"), CASES)
def test_a_client_gets_what_it_asks_for(outcomes: Outcomes, client: Client, backend: Backend, feature: str) -> None:
    seen = outcomes.of(client, backend)[feature]
    known = reason_of(client.name, feature, backend.name)
    if known is not None:
        assert seen.outcome == "failed", f"works now; take it out of small_model.py: {known}"
        pytest.xfail(known)
    assert seen.outcome != "failed", seen.detail


@pytest.mark.parametrize(("client", "backend"), SUITES)
def test_standard_tests_of_others_pass(outcomes: Outcomes, client: Client, backend: Backend) -> None:
    seen = outcomes.of(client, backend)
    tried = {feature for feature, each in seen.items() if each.outcome != "left out"}
    known = {feature for feature in tried if reason_of(client.name, feature, backend.name) is not None}
    failed = {feature for feature, each in seen.items() if each.outcome == "failed"}
    assert failed - known == set(), "\n\n".join(f"{each}: {seen[each].detail}" for each in sorted(failed - known))
    assert known - failed == set(), "these pass now; take them out of small_model.py"
    assert any(each.outcome == "works" for each in seen.values())

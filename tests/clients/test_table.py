"""The page that is published says what this run has seen; a run of some clients answers for their sections."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

from tests.clients.outcomes import CLIENTS, STANDARD, Outcomes
from tests.clients.serving import BACKENDS
from tests.clients.table import Row, page, sections_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"


def test_the_published_table_says_what_was_seen(outcomes: Outcomes) -> None:
    clients = (*CLIENTS, *STANDARD)
    tried = [
        client for client in clients if all((client.name, backend.name) in outcomes.seen for backend in client.backends)
    ]
    if not tried:
        pytest.skip("no client was tried with all of its backends in this run")
    rows = []
    for client in tried:
        told = {backend.name: outcomes.of(client, backend) for backend in client.backends}
        features = dict.fromkeys(feature for seen in told.values() for feature in seen)
        for feature in features:
            found = {backend: seen[feature] for backend, seen in told.items() if feature in seen}
            cells = {backend: (each.outcome, each.detail) for backend, each in found.items()}
            rows.append(Row(client.name, feature, cells))
    versions = {client.name: client.version for client in clients}
    published = PAGE.read_text() if PAGE.exists() else ""
    seen = page(rows, versions, [backend.name for backend in BACKENDS], sections_of(published))
    if os.environ.get("ORCHESTRATE_WRITE_COMPATIBILITY") == "yes":
        PAGE.write_text(seen)
        published = seen
    diff = "".join(difflib.unified_diff(published.splitlines(True), seen.splitlines(True), "published", "seen"))
    assert not diff, f"{PAGE.name} says something else; look at it, then run `make clients WRITE=yes`:\n{diff}"

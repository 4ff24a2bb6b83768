"""Fixtures of the fault suite: the gateway before fakes, as its own tests use it."""

from __future__ import annotations

from tests.runtime.gateway.conftest import lab, running

__all__ = ["lab", "running"]

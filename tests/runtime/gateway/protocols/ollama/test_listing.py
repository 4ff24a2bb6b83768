"""What Ollama's clients are told of the models is what is known, and nothing that is not."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from runtime.gateway.facts.known import Facts
from runtime.gateway.facts.names import Named
from runtime.gateway.protocols.ollama import listing
from runtime.gateway.routing.table import Card

NAMES = frozenset({"chat", "qwen3:8b", "org/name", "old:latest"})


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        *(("chat", "chat"), ("chat:latest", "chat"), ("qwen3:8b", "qwen3:8b"), ("qwen3", "qwen3")),
        *(
            ("org/name:latest", "org/name"),
            ("old", "old:latest"),
            ("old:latest", "old:latest"),
            ("x:latest", "x:latest"),
        ),
        *((":latest", ":latest"), ("chat:7b", "chat:7b")),
    ],
)
def test_the_tag_latest_may_be_left_out_or_added(asked: str, served: str) -> None:
    assert listing.served_name(asked, NAMES.__contains__) == served


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("chat", "chat:latest"),
        ("qwen3:8b", "qwen3:8b"),
        ("org/name", "org/name:latest"),
        ("host:80/name", "host:80/name:latest"),
    ],
)
def test_names_are_listed_with_a_tag(name: str, listed: str) -> None:
    assert listing.tagged(name) == listed
    assert listing.served_name(listed, {name}.__contains__) == name


def named(name: str = "chat", **known: Any) -> Named:
    return Named(name, Card(name, "orchestrate", "model"), Facts(observed_at=0.0, **known), ())


KNOWN = named(
    context_length=8192,
    can=frozenset({"completion", "tools", "json_schema", "thinking"}),
    dimensions=576,
    architecture="llama",
    parameter_count=134_515_008,
    parameter_size="135M",
    quantisation="Q4_1",
    format="gguf",
    size_bytes=98_000_000,
    digest="ab" * 32,
    modified_at="2026-01-02T03:04:05Z",
    is_loaded=True,
    expires_at=1_000_000_000.0,
    size_loaded=120_000_000,
    size_vram=110_000_000,
)
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "135M",
    "quantization_level": "Q4_1",
    "context_length": 8192,
    "embedding_length": 576,
}


def test_a_listed_model_says_what_is_known() -> None:
    assert listing.tag(KNOWN, 0.0) == {
        "name": "chat:latest",
        "model": "chat:latest",
        "modified_at": "2026-01-02T03:04:05Z",
        "size": 98_000_000,
        "digest": "ab" * 32,
        "details": DETAILS,
        "capabilities": ["completion", "tools", "thinking"],
    }


def test_a_model_in_memory_says_what_it_takes_and_until_when() -> None:
    assert listing.process(KNOWN, 5.0) == {
        "name": "chat:latest",
        "model": "chat:latest",
        "size": 120_000_000,
        "digest": "ab" * 32,
        "details": DETAILS,
        "expires_at": "2001-09-09T01:46:40.000000Z",
        "size_vram": 110_000_000,
        "context_length": 8192,
    }


def test_what_stays_in_memory_expires_when_nobody_lives_any_more() -> None:
    assert listing.process(named(is_loaded=True), 1_700_000_000.0)["expires_at"].startswith("2315-")


def test_what_is_shown_has_the_keys_that_clients_look_up() -> None:
    shown = listing.shown(KNOWN, 0.0)
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["details"] == DETAILS
    assert shown["model_info"] == {
        "general.architecture": "llama",
        "general.basename": "chat",
        "general.parameter_count": 134_515_008,
        "llama.context_length": 8192,
        "llama.embedding_length": 576,
    }
    assert shown["parameters"].split() == ["num_ctx", "8192"]
    assert shown["template"] == ""


def test_what_is_unknown_is_empty_but_of_the_right_type() -> None:
    tag, shown = listing.tag(named(), 0.0), listing.shown(named(), 0.0)
    assert tag["size"] == 0
    assert tag["modified_at"] == "1970-01-01T00:00:00.000000Z"
    assert tag["digest"] == hashlib.sha256(b"chat").hexdigest()
    assert all(value in ("", []) for value in tag["details"].values())
    assert shown["model_info"] == {"general.architecture": "unknown", "general.basename": "chat"}
    assert shown["parameters"] == ""

"""What the files say about who may ask, and from where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from runtime.gateway.security.rules import host_name, is_address, may_bind, rules_of
from schemas.keys import Keys
from schemas.stack import Stack
from tests.runtime.gateway.harness import stack_document


def stack(**gateway: Any) -> Stack:
    document = stack_document({"a": "http://127.0.0.1:1"}, gateway=gateway)
    document["nodes"]["here"] |= {"host": "Box.lan", "addresses": {"lan": "192.168.1.20", "six": "fd00::1"}}
    return Stack.model_validate_json(json.dumps(document))


@pytest.mark.parametrize(
    ("bind", "gateway", "expected"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("localhost", {}, True),
        ("0.0.0.0", {}, False),
        ("::", {}, False),
        ("192.168.1.20", {"auth": "none"}, False),
        ("192.168.1.20", {"exposed": "accepted"}, False),
        ("192.168.1.20", {"auth": "none", "exposed": "accepted"}, True),
        ("192.168.1.20", {"auth": {"keys_file": "keys.yaml"}}, True),
        ("box.lan", {}, False),
    ],
)
def test_beyond_loopback_keys_are_needed_or_their_lack_accepted(
    bind: str, gateway: dict[str, Any], expected: bool
) -> None:
    assert may_bind(stack(**gateway), bind) == expected


def test_the_hosts_are_loopback_the_address_the_nodes_names_and_the_listed() -> None:
    rules = rules_of(stack(hosts=["Chat.example"]), Keys(), None, "0.0.0.0", ("machine",))
    expected = {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", "box.lan", "192.168.1.20", "[fd00::1]", "here"}
    containers = {"host.docker.internal", "host.containers.internal"}
    assert rules.hosts == expected | {"chat.example", "machine"} | containers


def test_pages_of_the_web_and_of_apps_are_named_by_their_origins() -> None:
    origins = ["https://chat.lan", "http://[fd00::1]:3000", "app://obsidian.md", "tauri://localhost"]
    origins.append("chrome-extension://abcdefghijklmnopabcdefghijklmnop")
    assert rules_of(stack(origins=origins), Keys(), None, "127.0.0.1", ()).origins == set(origins)
    for wrong in ("null", "*", "https://chat.lan/", "HTTPS://chat.lan", "chat.lan", "https://", "https://a b"):
        with pytest.raises(ValidationError):
            stack(origins=[wrong])


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:80", "localhost"),
        ("[::1]", "[::1]"),
        ("[FD00::1]:8000", "[fd00::1]"),
        ("1.2.3.4:5", "1.2.3.4"),
    ],
)
def test_a_host_is_known_without_its_port(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10.0.0.5", True),
        ("[fd00::1]", True),
        ("[::ffff:10.0.0.5]", True),
        ("evil.example", False),
        ("10.0.0.5.evil.example", False),
        ("fd00::1", False),
        ("[10.0.0.5]", False),
        ("10.0.5", False),
        ("", False),
    ],
)
def test_addresses_are_told_from_names(name: str, expected: bool) -> None:
    assert is_address(name) == expected

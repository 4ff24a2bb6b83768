"""What announcements become: machines, and node files that hold nothing of what a sender may have smuggled in."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.files import node_file
from orchestrator.node.announced import SERVICES, SFTP, SSH, WORKSTATION, Announcement, Self, machines
from schemas.base import NodeName
from schemas.node import Node

HERE = Self("desk.lan", frozenset({"192.168.1.2", "127.0.0.1"}))
MAC = Announcement(
    SSH,
    "Anna's Mac",
    "Annas-Mac.local.",
    ("fe80::1", "fd00::7", "192.168.1.7"),
    22,
    {"osxvers": "24", "model": "Mac14,13"},
)


def only(*announcements: Announcement, nodes: dict[str, Node] | None = None):
    (found,) = machines(announcements, {NodeName(name): node for name, node in (nodes or {}).items()}, HERE)
    return found


def said(host: str = "box.local.", service: str = SSH, port: int = 22, **others) -> Announcement:
    return Announcement(service, "box", host, others.pop("addresses", ("192.168.1.9",)), port, others)


def test_a_machine_is_drafted_once_for_all_that_it_announces():
    found = only(MAC, Announcement(SFTP, MAC.instance, "annas-mac.local.", ("192.168.1.7",), 22))
    assert found.name == "annas-mac"
    assert found.title == "Anna's Mac"
    assert found.addresses == ("192.168.1.7", "fd00::7", "fe80::1")
    assert found.is_new
    assert found.content() == {
        "reach": "ssh",
        "host": "annas-mac.local",
        "os": "macos",
        "addresses": {"lan": "192.168.1.7"},
    }


def test_addresses_of_several_networks_are_named_for_review():
    found = only(said(addresses=("192.168.1.9", "10.0.0.9", "169.254.3.4", "127.0.0.1")))
    assert found.content()["addresses"] == {"lan": "192.168.1.9", "lan2": "10.0.0.9"}
    assert any(check.startswith("addresses:") for check in found.checks())


def test_ipv6_is_taken_where_there_is_nothing_else():
    assert only(said(addresses=("fe80::1", "fd00::7"))).content()["addresses"] == {"lan": "fd00::7"}


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ({"osxvers": "24"}, "macos"),
        ({"os": "macOS 15.1"}, "macos"),
        ({"OS": "Debian GNU/Linux"}, "linux"),
        ({"model": "MacPro7,1"}, None),  # Samba says it too
        ({}, None),
    ],
)
def test_the_system_is_what_txt_records_say(text, system):
    assert only(said(**text)).os == system


@pytest.mark.parametrize(
    ("node", "name", "by"),
    [
        (Node(reach="ssh", host="box.lan"), "other", "host"),
        (Node(reach="ssh", host="192.168.1.9"), "other", "address"),
        (Node(reach="none", addresses={"lan": "192.168.1.9"}), "other", "address"),
        (Node(reach="ssh", host="192.168.1.50"), "box", "name"),
    ],
)
def test_a_node_that_has_a_file_is_recognised(node, name, by):
    found = only(said(), nodes={name: node})
    assert (found.name, found.known, found.is_new) == (name, by, False)


def test_other_nodes_are_not_taken_for_it():
    nodes = {"one": Node(reach="ssh", host="192.168.1.10"), "boxer": Node(reach="ssh", host="boxer.local")}
    assert only(said(), nodes=nodes).is_new


@pytest.mark.parametrize("announcement", [said("desk.local."), said(addresses=("192.168.1.2",))])
def test_the_machine_that_listens_is_told_from_the_others(announcement):
    found = only(announcement, nodes={"local": Node(reach="local")})
    assert found.is_here
    assert not found.is_new
    assert found.name == "local"


def test_what_has_to_be_looked_at_is_said():
    assert any("memory_gib: unknown" in check for check in only(MAC).checks())
    assert any("port 2222" in check for check in only(said(port=2222)).checks())
    assert any("does not announce ssh" in check for check in only(said(service=WORKSTATION, port=9)).checks())


def test_names_are_made_valid_and_never_twice():
    found = machines([said("a!b.local."), said("a?b.local."), said("...")], {}, HERE)
    assert [machine.name for machine in found] == ["a-b", "a-b-2", "machine"]
    assert {machine.content()["host"] for machine in found} == {"192.168.1.9"}  # ssh could not connect to such names


def test_a_machine_without_a_way_to_it_is_not_drafted():
    assert not only(said("-oProxyCommand=x.local.", addresses=("169.254.1.1",))).is_new


ADDRESSES = st.ip_addresses().map(str)
ANNOUNCEMENTS = st.builds(
    Announcement,
    st.sampled_from(SERVICES),
    st.text(),
    st.text() | st.from_regex(r"[a-z]{1,3}\.local\.", fullmatch=True),
    st.lists(ADDRESSES | st.text(), max_size=4).map(tuple),
    st.integers(0, 65535),
    st.dictionaries(st.sampled_from(["os", "osxvers", "model"]), st.text()),
)


@given(st.lists(ANNOUNCEMENTS, max_size=5))
def test_whatever_is_announced_every_draft_is_a_valid_node_file(tmp_path_factory, announcements):
    found = machines(announcements, {}, HERE)
    assert len({machine.name for machine in found}) == len(found)
    for machine in found:
        assert machine.title.isprintable()
        if machine.is_new:
            comment = "".join(f"# {line}\n" for line in (machine.title, *machine.checks()))
            written = yaml.safe_load(
                node_file(tmp_path_factory.getbasetemp(), machine.name, machine.content(), comment)
            )
            assert list(written) == [machine.name]
            Node.from_json(json.dumps(written[machine.name]))

"""Which address a unit listens on and is called at, and what is said where the files do not tell it."""

from __future__ import annotations

import pytest

from orchestrator.addresses import (
    AddressError,
    address_conflicts,
    bind_address,
    called_at,
    group_addresses,
    node_address,
    rdma_devices,
    url_host,
)
from schemas.base import ModelName, NodeName, ServiceName
from schemas.node import Node
from schemas.unit import AnyUnitSpec, GatewaySpec, GroupSpec, ModelSpec, WorkerSpec

LOCAL, BOX, MAC = NodeName("local"), NodeName("box"), NodeName("mac")


def worker(node: NodeName, group: GroupSpec | None = None) -> WorkerSpec:
    model = ModelSpec(name=ModelName("m"), source="hub:org/m")
    return WorkerSpec(
        node=node, service=ServiceName("chat"), replica=0, rank=0, model=model, max_batch=1, max_waiting=1, group=group
    )


def gateway(node: NodeName) -> GatewaySpec:
    return GatewaySpec(node=node, bind="127.0.0.1", port=8000)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (Node(reach="ssh", host="box", addresses={"lan": "10.0.0.5", "tb": "10.1.0.5"}), "10.0.0.5"),
        (Node(reach="ssh", host="box", addresses={"tb": "10.1.0.5"}), "10.1.0.5"),
        (Node(reach="ssh", host="box", addresses={"a": "10.1.0.5", "b": "10.2.0.5"}), "box"),
        (Node(reach="ssh", host="box"), "box"),
        (Node(reach="local"), None),
    ],
)
def test_a_node_is_called_at_its_lan_address_else_its_only_one_else_its_host(node, expected):
    assert node_address(node) == expected


def test_units_on_the_callers_machine_are_on_loopback():
    nodes = {LOCAL: Node(reach="local", addresses={"lan": "10.0.0.1"}), BOX: Node(reach="ssh", host="10.0.0.5")}
    assert called_at(BOX, BOX, nodes) is None
    assert called_at(BOX, LOCAL, nodes) == "10.0.0.5"
    assert called_at(LOCAL, BOX, nodes) == "10.0.0.1"


@pytest.mark.parametrize(
    ("host", "bind", "url"),
    [
        (None, "127.0.0.1", "127.0.0.1"),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5"),
        ("fd00::5", "fd00::5", "[fd00::5]"),
        ("box.lan", "0.0.0.0", "box.lan"),
    ],
)
def test_a_unit_binds_the_address_it_is_called_at_and_everything_behind_a_name(host, bind, url):
    assert bind_address(host) == bind
    assert url_host(host) == url


def ring(*nodes: NodeName) -> GroupSpec:
    return GroupSpec(backend="ring", strategy="tensor", nodes=nodes)


def test_ranks_on_one_machine_meet_on_loopback():
    assert group_addresses(ring(LOCAL, LOCAL), {LOCAL: Node(reach="local")}).links == ("127.0.0.1", "127.0.0.1")


def test_collectives_take_the_cable_only_where_all_have_it():
    both = {
        BOX: Node(reach="ssh", host="box", addresses={"lan": "10.0.0.5", "tb": "10.1.0.5"}),
        MAC: Node(reach="ssh", host="mac", addresses={"lan": "10.0.0.6", "tb": "10.1.0.6"}),
    }
    found = group_addresses(ring(BOX, MAC), both)
    assert found.links == ("10.1.0.5", "10.1.0.6")
    assert found.control == "10.0.0.5"
    one = {**both, MAC: Node(reach="ssh", host="mac", addresses={"lan": "10.0.0.6"})}
    assert group_addresses(ring(BOX, MAC), one).links == ("10.0.0.5", "10.0.0.6")


def test_a_group_needs_ipv4_addresses_and_says_where_to_write_them():
    nodes = {BOX: Node(reach="ssh", host="box.lan"), LOCAL: Node(reach="local")}
    with pytest.raises(AddressError) as raised:
        group_addresses(ring(BOX, LOCAL), nodes)
    assert [problem.split(" ")[0] for problem in raised.value.problems] == [
        "nodes.box.addresses.lan",
        "nodes.local.addresses.lan",
    ]
    assert "box.lan" in raised.value.problems[0]


def test_a_missing_rdma_device_names_both_ends():
    nodes = {
        BOX: Node(reach="ssh", host="10.0.0.5", rdma={"mac": "rdma_en2"}),
        MAC: Node(reach="ssh", host="10.0.0.6"),
    }
    with pytest.raises(AddressError) as raised:
        rdma_devices(GroupSpec(backend="jaccl", strategy="tensor", nodes=(BOX, MAC)), nodes)
    assert raised.value.problems == (
        "nodes.mac.rdma.box is missing: the RDMA device of mac that leads to box, such as rdma_en2",
    )


def test_two_ranks_of_a_jaccl_group_share_no_machine():
    with pytest.raises(AddressError, match="box stands several times"):
        rdma_devices(
            GroupSpec(backend="jaccl", strategy="tensor", nodes=(BOX, BOX)), {BOX: Node(reach="ssh", host="b")}
        )


def test_a_local_unit_behind_a_gateway_elsewhere_needs_an_address():
    nodes = {LOCAL: Node(reach="local"), BOX: Node(reach="ssh", host="10.0.0.5")}
    specs: list[AnyUnitSpec] = [gateway(BOX), worker(LOCAL)]
    (conflict,) = address_conflicts(specs, nodes)
    assert conflict.startswith("nodes.local.addresses.lan is missing: the gateway on box calls chat-0.0 there")
    assert address_conflicts([gateway(LOCAL), worker(BOX), worker(LOCAL)], nodes) == []


def test_what_a_group_lacks_is_a_conflict_of_the_plan():
    nodes = {LOCAL: Node(reach="local"), BOX: Node(reach="ssh", host="10.0.0.5")}
    group = GroupSpec(backend="jaccl", strategy="tensor", nodes=(LOCAL, BOX))
    conflicts = address_conflicts([gateway(LOCAL), worker(LOCAL, group)], nodes)
    assert [conflict.split(" ")[0] for conflict in conflicts] == [
        "nodes.local.addresses.lan",
        "nodes.local.rdma.box",
        "nodes.box.rdma.local",
    ]

"""Hostfiles of `mlx.launch` in today's words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.hostfile import HostfileError, import_hostfile
from schemas.node import Node

PAIR = [
    {"ssh": "me@mac1.local", "ips": ["10.0.0.1"], "rdma": [None, "rdma_en5"]},
    {"ssh": "mac2.local", "ips": ["10.0.0.2", "10.1.0.2"], "rdma": [["rdma_en5", "rdma_en6"], None]},
]
NODES = {
    "mac1": {
        "reach": "ssh", "host": "mac1.local", "user": "me",
        "addresses": {"lan": "10.0.0.1"}, "rdma": {"mac2": "rdma_en5"},
    },
    "mac2": {
        "reach": "ssh", "host": "mac2.local",
        "addresses": {"lan": "10.0.0.2", "lan2": "10.1.0.2"}, "rdma": {"mac1": "rdma_en5"},
    },
}  # fmt: skip


@pytest.mark.parametrize("document", [PAIR, {"backend": "jaccl", "envs": ["A=1"], "hosts": PAIR}])
def test_both_shapes_give_the_same_nodes(document):
    imported = import_hostfile(json.dumps(document))
    assert imported.nodes == NODES
    assert imported.backend == (document["backend"] if isinstance(document, dict) else None)
    assert any("several devices" in note for note in imported.notes)
    for node in imported.nodes.values():
        Node.model_validate(node)


def test_left_out_environments_are_told():
    imported = import_hostfile(json.dumps({"hosts": PAIR, "envs": ["MLX_METAL_FAST_SYNCH=1"]}))
    assert "envs were left out: the environment of a rank is orchestrate's to set" in imported.notes


def test_this_machine_is_local_and_equal_names_are_numbered():
    hosts = [{"ssh": "localhost"}, {"ssh": "box.lan"}, {"ssh": "box.wan"}, {"ssh": "10.0.0.9"}]
    nodes = import_hostfile(json.dumps(hosts)).nodes
    assert list(nodes) == ["localhost", "box", "box-2", "10.0.0.9"]
    assert nodes["localhost"] == {"reach": "local"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "expected a list of hosts"),
        ('{"backend": "ring"}', "expected a list of hosts"),
        ('[["10.0.0.1:5000"]]', "host 0 has no `ssh`"),
        ('[{"ssh": "a", "rdma": ["x"]}, {"ssh": "b"}]', "1 rdma entries for 2 hosts"),
        (json.dumps([{"ssh": "a" * 80}]), "cannot be a node's name"),
    ],
)
def test_what_is_no_hostfile_is_told(text, words):
    with pytest.raises(HostfileError, match=words):
        import_hostfile(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["ssh", "ips", "rdma", "hosts", "envs", "backend"]), inner, max_size=4)
        ),
        max_leaves=10,
    )
)
def test_no_file_escapes_as_another_error(document):
    try:
        imported = import_hostfile(json.dumps(document))
    except HostfileError:
        return
    assert imported.nodes

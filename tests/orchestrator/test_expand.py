"""Which units a stack asks for, where they run and what they need; and which models their ranks can share."""

from __future__ import annotations

import cProfile
import pstats

import pytest

from bench.plan_scale import bare, fleet, running
from orchestrator.expand import expand
from orchestrator.footprint import unit_memory
from orchestrator.memory import with_estimates
from orchestrator.observed import ModelFacts
from orchestrator.reconcile import reconcile
from orchestrator.sharding import group_problems, sharding_conflicts
from schemas.base import ModelName, NodeName
from schemas.node import Node
from tests.properties.worlds import OWNER, fleet_of, stack_of

GATEWAY = {"node": "alpha", "port": 8000}
RING = {"backend": "ring", "strategy": "tensor"}
SMOLLM = ModelFacts("llama", layers=30, heads=9, kv_heads=3, hidden=576, intermediate=1536, weights_bytes=1 << 30)
QWEN = ModelFacts("qwen2", layers=28, heads=28, kv_heads=4, hidden=3584, intermediate=18944, weights_bytes=8 << 30)


def desired(lost: tuple[str, ...] = (), remembered: dict[NodeName, Node] | None = None, **services: dict[str, object]):
    stack = fleet_of({name: {"model": "m1", **service} for name, service in services.items()}, GATEWAY)
    return expand(stack, OWNER, lost=[NodeName(name) for name in lost], remembered=remembered)


def places(wanted) -> dict[str, str]:
    return {slot: unit.node for slot, unit in wanted.units.items() if not slot.startswith("gateway")}


def test_copies_of_a_service_take_its_nodes_in_turn():
    wanted = desired(coder={"nodes": ["alpha", "gamma"], "replicas": 3})
    assert places(wanted) == {"coder-0.0": "alpha", "coder-1.0": "gamma", "coder-2.0": "alpha"}


def test_a_copy_whose_node_is_lost_moves_to_the_next_of_its_nodes_and_the_others_stay():
    wanted = desired(lost=("beta",), coder={"nodes": ["alpha", "beta", "gamma"], "replicas": 3})
    assert places(wanted) == {"coder-0.0": "alpha", "coder-1.0": "gamma", "coder-2.0": "gamma"}


def test_a_copy_that_can_run_nowhere_else_stays_where_it_is_wanted():
    assert places(desired(lost=("beta",), coder={"nodes": ["beta"]})) == {"coder-0.0": "beta"}


def test_a_sharded_service_is_a_group_of_ranks_and_its_copies_are_groups():
    wanted = desired(titan={"nodes": ["alpha", "alpha", "beta"], "sharding": RING, "replicas": 2})
    ranks = {0: "alpha", 1: "alpha", 2: "beta"}
    assert places(wanted) == {f"titan-{copy}.{rank}": node for copy in (0, 1) for rank, node in ranks.items()}
    hosts = [wanted.units[f"titan-0.{rank}"].spec.host for rank in ranks]
    assert hosts == [None, None, None]  # the gateway calls rank 0 only, and that one is on its machine


@pytest.mark.parametrize(
    ("sharding", "shares"),
    [(RING, [1.0, 1.0, 1.0]), ({"backend": "ring", "strategy": "pipeline", "split": [1, 1, 4]}, [0.5, 0.5, 2.0])],
)
def test_the_memory_of_a_group_is_divided_by_its_ranks_or_by_its_split(sharding, shares):
    wanted = desired(titan={"nodes": ["alpha", "beta", "gamma"], "sharding": sharding})
    assert [wanted.units[f"titan-0.{rank}"].memory_gib for rank in range(3)] == shares


def test_memory_that_is_not_declared_is_estimated_from_the_weights_and_marked_so():
    wanted = desired(coder={"model": "m3", "nodes": ["alpha"]})
    assert wanted.units["coder-0.0"].memory_gib is None
    facts = {ModelName("m3"): ModelFacts("llama", weights_bytes=10 << 30)}
    unit = with_estimates(wanted, facts).units["coder-0.0"]
    assert (unit.memory_gib, unit.is_estimate) == (12.25, True)
    # 28 layers, 4 of 28 heads of 128: 57,344 bytes a token; 8 requests of 4,096 tokens are 1.75 GiB
    memory, _ = unit_memory(unit.spec, None, QWEN)
    assert memory == pytest.approx(8 + 1.75 + 0.25)
    assert unit_memory(unit.spec, 5.0, QWEN) == (5.0, False)


def test_a_node_that_left_the_files_is_still_looked_at():
    wanted = desired(
        remembered={NodeName("old"): Node(reach="ssh", host="old.lan"), NodeName("alpha"): Node(reach="local")}
    )
    assert wanted.left == {"old"}
    assert wanted.nodes["old"].host == "old.lan"


@pytest.mark.parametrize(
    ("nodes", "facts", "says"),
    [
        (["alpha", "beta"], SMOLLM, ["m1", "num_attention_heads 9", "num_key_value_heads 3", "1 or 3 ranks"]),
        (["alpha", "beta", "gamma"], SMOLLM, []),
        (["alpha", "beta"], ModelFacts("gemma2", heads=8, kv_heads=4), ["no tensor sharding for model_type gemma2"]),
        (["alpha", "beta"], QWEN, []),
    ],
)  # fmt: skip
def test_a_model_that_its_ranks_cannot_share_is_a_conflict_with_its_numbers(nodes, facts, says):
    wanted = desired(titan={"nodes": nodes, "sharding": RING})
    found = sharding_conflicts(wanted, {ModelName("m1"): facts})
    assert bool(found) == bool(says)
    assert all(word in found[0] for word in says)
    assert group_problems(wanted.units["titan-0.0"].spec, facts) == [text.split(": ", 1)[1] for text in found]


def test_a_model_that_is_not_known_yet_is_no_conflict():
    assert sharding_conflicts(desired(titan={"nodes": ["alpha", "beta"], "sharding": RING}), {}) == []


def test_planning_grows_with_the_fleet_and_not_faster():
    def calls(nodes: int) -> int:
        stack = fleet(nodes)
        worlds = [bare(expand(stack, OWNER)), running(expand(stack, "/conf"))]
        profile = cProfile.Profile()
        profile.enable()
        for world in worlds:
            reconcile(expand(fleet(nodes, max_batch=4), "/conf"), world)
        profile.disable()
        return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

    assert calls(80) < 4.5 * calls(20)


def test_a_renamed_node_is_looked_at_by_its_new_name_alone():
    stack = stack_of({"coder": {"model": "m1", "nodes": ["alpha"]}})
    alpha = stack.nodes[NodeName("alpha")]
    elsewhere = alpha.model_copy(update={"host": "elsewhere.lan"})
    wanted = expand(stack, "/conf", remembered={NodeName("old"): alpha, NodeName("gone"): elsewhere})
    assert wanted.left == {"gone"}


def moved(lost: str, **services: dict[str, object]) -> dict[str, tuple[str, bool]]:
    """Return where each slot is put while a node is lost, and whether it is a stand-in."""
    stack = stack_of({name: {"model": "m1", **body} for name, body in services.items()})
    wanted = expand(stack, OWNER, lost={NodeName(lost)})
    return {slot: (unit.node, unit.is_moved) for slot, unit in wanted.units.items() if slot != "gateway-0.0"}


def test_a_copy_moves_from_a_lost_node_to_the_next_that_its_service_names():
    assert moved("alpha", coder={"nodes": ["alpha", "beta"], "replicas": 2}) == {
        "coder-0.0": ("beta", True), "coder-1.0": ("beta", False),
    }  # fmt: skip
    assert moved("alpha", coder={"nodes": ["alpha"]}) == {"coder-0.0": ("alpha", False)}


def test_no_copy_moves_to_where_its_port_is_used():
    both = {"nodes": ["alpha", "beta"], "port": 18150}
    assert moved("alpha", coder={**both, "replicas": 2})["coder-0.0"] == ("alpha", False)
    assert moved("alpha", coder=both)["coder-0.0"] == ("beta", True)
    assert moved("alpha", coder=both, tiny={"nodes": ["beta"], "port": 18150})["coder-0.0"] == ("alpha", False)
    at_gateway = {"nodes": ["beta", "alpha"], "port": 8000}
    assert moved("beta", coder=at_gateway)["coder-0.0"] == ("beta", False)
